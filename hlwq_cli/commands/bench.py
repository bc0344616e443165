"""hlwq bench: measure fidelity, speed and memory of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..ui import (
    DtypeOption,
    ExecutionOption,
    Format,
    FormatOption,
    GpuMemoryOption,
    JsonOption,
    ModelDeviceOption,
    QuietOption,
    Sink,
    as_execution,
    handle_errors,
)

if TYPE_CHECKING:
    from ..measure import BenchReport, ProtocolName


@handle_errors
def bench(
    paths: Annotated[list[str], typer.Argument(help="Checkpoints, coded or plain: folders, Hub ids or 'sample'.")],
    ref: Annotated[str | None, typer.Option(metavar="MODEL", help="Unquantized model to compare with.")] = None,
    ppl: Annotated[
        bool, typer.Option("--ppl", help="Measure perplexity; with --ref also the paired difference.")
    ] = False,
    kld: Annotated[bool, typer.Option("--kld", help="Measure KL divergence and top-1 agreement with --ref.")] = False,
    cosine: Annotated[
        bool, typer.Option("--cosine", help="Measure the weight error of each coded tensor against --ref.")
    ] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Measure tokens per second and memory.")] = False,
    tasks: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Run lm-eval tasks, such as hellaswag; needs 'hlwq\\[eval]'.")
    ] = None,
    task_folder: Annotated[Path | None, typer.Option(help="Folder with your own lm-eval task files.")] = None,
    task_limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of examples per task.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Text file, 'sample', or DATASET[:CONFIG[:SPLIT]]; default wikitext-2-raw.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="paper (windows of 2048 tokens) or llama.cpp (512 tokens, second half scored).")
    ] = "paper",
    window: Annotated[int | None, typer.Option(help="Tokens per window; default is the protocol's.")] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Maximum number of windows.")] = None,
    chart: Annotated[
        Path | None,
        typer.Option(metavar="OUT.png", help="Draw a chart for light pages, and OUT-dark.png for dark ones."),
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Write figures and chart into each PATH and update its card.")
    ] = False,
    device: ModelDeviceOption = "auto",
    dtype: DtypeOption = "auto",
    execution: ExecutionOption = "auto",
    kv_bits: Annotated[
        str | None,
        typer.Option(
            metavar="4|4,3",
            help="Store keys and values of each PATH, not of --ref, in codes of 2 to 8 bits; 4,3 is 4 for keys, 3 for "
            "values. KLD on SmolLM2-135M: 5 bits .0009 nats, 4 .003, 4,3 .006, 3 .014, 2 .076.",
        ),
    ] = None,
    gpu_memory: GpuMemoryOption = None,
    max_ppl_delta: Annotated[
        float | None, typer.Option(help="Exit with code 6 if ln PPL is higher than that of --ref by more than this.")
    ] = None,
    max_kld: Annotated[float | None, typer.Option(help="Exit with code 6 if the mean KL divergence is larger.")] = None,
    min_top1: Annotated[
        float | None, typer.Option(help="Exit with code 6 if top-1 agreement (0 to 1) is smaller.")
    ] = None,
    format: FormatOption = Format.auto,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure perplexity, divergence, weight error and speed; draw a chart; check limits."""
    sink = Sink(format, json, quiet)
    from ..measure import Gates, Request, check_drawable, check_gates, check_savable
    from ..measure import bench as measure
    from ..runtime.kv import KVBits
    from ..runtime.offload import ExpertBudget
    from ..ui import hide_library_bars, progress_display, quiet_log, show_bench

    how = as_execution(execution)
    gates = Gates(max_ppl_delta, max_kld, min_top1)
    gates.check_measured(ppl=ppl, kld=kld, ref=ref)
    names = tuple(t.strip() for t in (tasks or "").split(",") if t.strip())
    request = Request(
        ppl=ppl,
        kld=kld,
        cosine=cosine,
        speed=speed,
        tasks=names,
        task_folder=task_folder,
        task_limit=task_limit,
        data=data,
        protocol=cast("ProtocolName", protocol),
        window=window,
        windows=windows,
        device=device,
        dtype=dtype,
        execution=how,
        kv_bits=None if kv_bits is None else KVBits.parse(kv_bits),
        expert_budget=ExpertBudget.parse(None, gpu_memory),
    )
    if save:
        check_savable(paths)
    if chart is not None:
        check_drawable(chart)
    hide_library_bars(sink)
    with quiet_log(sink), progress_display(sink) as progress:
        report = measure(paths, request, ref, progress)
    if report.note:
        sink.note(report.note)
    missed = check_gates(report, gates)
    show_bench(sink, report, missed)
    if chart is not None:
        _draw(sink, report, chart)
    if save:
        _save(sink, report)
    _end(report, missed)


def _draw(sink: Sink, report: BenchReport, chart: Path) -> None:
    from ..measure import draw

    sink.note(f"Chart: {', '.join(str(p) for p in draw(report, chart))}")


def _save(sink: Sink, report: BenchReport) -> None:
    from ..hub import remake_card
    from ..measure import save_report

    for path in save_report(report):
        sink.note(f"Saved: {path}; {remake_card(path.parent).path}")


def _end(report: BenchReport, missed: tuple[str, ...]) -> None:
    from ..errors import GateMissedError, HlwqError

    if report.failed:
        raise HlwqError(f"Stopped early: {report.failed}", "The figures measured before that are above.")
    if missed:
        raise GateMissedError("; ".join(missed) + ".")
