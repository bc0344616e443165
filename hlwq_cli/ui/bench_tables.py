"""Bench reports for people, as Markdown that can be pasted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from ..sizes import format_size
from .sink import Sink

if TYPE_CHECKING:
    from ..measure import BenchReport, ExpertTraffic, Measured, Speed

_WORST = 5


def show_bench(sink: Sink, report: BenchReport, missed: tuple[str, ...]) -> None:
    """Show all figures of a report."""
    value = {"report": report, "gates_missed": missed}
    sink.result("bench", value, lambda console: _human(console, report), _line(report))


def _line(report: BenchReport) -> str:
    """Return one figure of the last model: the first of divergence, perplexity, worst error, decode speed and task."""
    last = report.measured[-1] if report.measured else report.reference
    if last is None:
        return ""
    found = [f"{last.divergence.mean:.6f}"] if last.divergence else []
    found += [f"{last.perplexity.value:.4f}"] if last.perplexity else []
    found += [f"{max(t.error for t in last.similarity):.3e}"] if last.similarity else []
    found += [f"{last.speed.decode.mean:.1f}"] if last.speed else []
    found += [f"{s.value:.4f}" for s in last.tasks or ()]
    return found[0] if found else ""


def _human(console: Console, report: BenchReport) -> None:
    models = ([report.reference] if report.reference else []) + list(report.measured)
    if report.protocol:
        console.print(report.protocol.line)
    _table(console, models)
    for m in report.measured:
        _details(console, m)
    for m in models:
        if s := m.speed:
            runs = f"{s.decode.runs} runs after a warm-up"
            cut = _cut(s) if s.is_cut else ""
            console.print(f"{m.path}: on {s.device}; {runs}; decoded {_decoding(s)}{cut}.")


def _table(console: Console, models: list[Measured]) -> None:
    columns = ["model", "weights", "bits/weight"]
    if any(m.kv_cache for m in models):
        columns += ["KV bits"]
    if any(m.perplexity for m in models):
        columns += ["PPL", "ln PPL rise"]
    if any(m.divergence for m in models):
        columns += ["KLD", "top-1 agreement"]
    if any(m.speed for m in models):
        columns += ["prefill tok/s", "decode tok/s", "peak memory", "load s"]
    console.print("| " + " | ".join(columns) + " |")
    console.print("|" + "---|" * len(columns))
    for m in models:
        console.print("| " + " | ".join(_cells(m, columns)) + " |")


def _cells(m: Measured, columns: list[str]) -> list[str]:
    bits = f"{m.bits_per_weight:.3f}" if m.bits_per_weight else "not coded"
    cells = {"model": m.path, "weights": format_size(m.bytes), "bits/weight": bits}
    cells["KV bits"] = m.kv_cache.bits if m.kv_cache else "none coded"
    if m.perplexity:
        cells["PPL"] = f"{m.perplexity.value:.4f} ± {m.perplexity.error:.4f}"
    if m.delta:
        cells["ln PPL rise"] = f"{m.delta.log_ratio:+.4f} ± {m.delta.error:.4f}"
    if m.divergence:
        cells["KLD"] = f"{m.divergence.mean:.5f} ± {m.divergence.error:.5f}"
        cells["top-1 agreement"] = f"{m.divergence.same_top:.4f} ± {m.divergence.same_top_error:.4f}"
    if m.speed:
        cells["prefill tok/s"] = f"{m.speed.prefill.mean:.1f} ± {m.speed.prefill.deviation:.1f}"
        cells["decode tok/s"] = f"{m.speed.decode.mean:.1f} ± {m.speed.decode.deviation:.1f}"
        peaks = [format_size(m.speed.device_peak)] if m.speed.device_peak else []
        cells["peak memory"] = ", host ".join([*peaks, format_size(m.speed.host_peak)])
        cells["load s"] = f"{m.load_seconds or 0:.1f}"
    return [cells.get(column, "") for column in columns]


def _decoding(speed: Speed) -> str:
    words = {
        "graph": "by replaying a CUDA graph",
        "eager": "step by step, without a CUDA graph",
        "transformers": "by the loop of transformers",
    }[speed.decoding]
    return f"{words} ({speed.not_captured.rstrip('.')})" if speed.not_captured else words


def _cut(speed: Speed) -> str:
    return f"; cut to the context: a prompt of {speed.prompt_tokens} tokens, and {speed.new_tokens} decoded"


def _experts(e: ExpertTraffic) -> str:
    where = {"host": "host memory", "files": "the checkpoint's files"}[e.tier]
    text = (
        f"{e.slots} of {e.experts} experts in each of {e.layers} layers on the device, all "
        f"({format_size(e.outside_bytes)}) in {where}; hit rate {e.hit_rate:.3f}, {format_size(e.token_bytes)} fetched "
        "per decoded token"
    )
    if e.ahead_bytes:
        text += f", and {format_size(e.ahead_bytes)} prefetched"
    if e.copy_bound is None:
        return f"{text}."
    return (
        f"{text}; the copies alone, at {e.copy_rate / 1e9:.1f} GB/s, limit it to {e.copy_bound:.0f} tokens per second."
    )


def _details(console: Console, m: Measured) -> None:
    if m.kv_cache:
        k = m.kv_cache
        console.print(
            f"{m.path}: keys and values of {k.layers} layers in codes of {k.bits} bits: {k.token_bytes} bytes per "
            f"token instead of {k.dense_token_bytes}, {k.dense_token_bytes / k.token_bytes:.2f} times smaller; "
            f"the newest {k.window} tokens and up to {k.group - 1} more stay exact."
        )
    if m.speed and m.speed.experts:
        console.print(f"{m.path}: {_experts(m.speed.experts)}")
    if m.perplexity and m.perplexity.non_finite:
        console.print(f"{m.path}: {m.perplexity.non_finite} tokens without a finite likelihood are left out.")
    if m.divergence:
        d = m.divergence
        percentiles = ", ".join(f"{q} % {v:.5f}" for q, v in d.percentiles.items())
        console.print(
            f"{m.path}: KLD {percentiles}, max {d.maximum:.4f}; noise floor {d.noise_floor:.6f}; "
            f"{d.positions} positions, {d.non_finite} not finite."
        )
        for b in d.buckets:
            console.print(
                f"  reference confidence {b.low:.2f}-{b.high:.2f}: {b.tokens} tokens, KLD {b.kld:.5f}, "
                f"top-1 agreement {b.same_top:.3f}"
            )
    if m.similarity:
        console.print(f"{m.path}: tensors with the largest error relative to the expected error of their width")
        for t in m.similarity[:_WORST]:
            mark = "  <- suspicious" if t.sick else ""
            console.print(f"  {t.name}: {t.bits} bits, cosine {t.cosine:.6f}, error {t.error:.3e}{mark}")
    for s in m.tasks or ():
        error = "" if s.error is None else f" ± {s.error:.4f}"
        console.print(f"{m.path}: {s.task} {s.metric} {s.value:.4f}{error}")
