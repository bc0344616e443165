"""Tokens a second of a mixture of experts whose experts lie outside the GPU, beside the same model resident.

    python scripts/bench/offload.py CODED_FOLDER --gpu-memory 8.6GB [--cases slots none resident] [--tokens 128]
        [--ahead 1] [--recall .79]

Each case is a process of its own: `slots` has as many experts on the GPU as its memory holds, `none` one slot a layer
and scratch, `resident` all. In each, tokens are decoded with the model's own router, and with choices drawn beforehand
that lie on the device: `uniform`, and `sticky`, where each expert of the last token is kept with probability .45.
Random weights say nothing of real routing; these two bracket it. What would be guessed of drawn choices is drawn, too:
each expert is named with the probability `--recall`, by default that of the bundled sample (bench_prefetch.py);
`--ahead` is how many of a layer's guesses are fetched at most, 0 none. Reported: tokens a second (prompt left out), hit
rate, bytes fetched a token, the copy bound (measured copy rate over these bytes), prefill of 512 tokens, memory of
device (by the driver, context included) and host, and from a profile of a few tokens the device's time by kernel, and
by cause with what copying its bytes takes at least (time_by_cause.py). `--slots N` instead of `--gpu-memory` runs
anywhere.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scripts.bench.synthetic_routing import override_routing, synthetic_predictions, synthetic_topk_ids
from scripts.bench.time_by_cause import (
    by_cause,
    by_kernel,
    bytes_read,
    cause_rows,
    device_copy_rate,
    per_token,
    profiled,
)

PROMPT_TOKENS, PREFILL_TOKENS = 8, 512
CASES = ("slots", "none", "resident")
Figures = dict[str, Any]


def fetch_ahead_at_most(experts: int) -> None:
    """Of a layer, in models that are loaded from now on."""
    from hlwq_kernels.offload import layer as offloaded

    setattr(offloaded, "AHEAD", experts)  # noqa: B010 - it is no name of that module's own
    if not experts:
        setattr(offloaded.OffloadedLayer, "prefetch", lambda *args: None)  # noqa: B010


def seconds_of(work: Callable[[], Any], runs: int, device: torch.device) -> list[float]:
    """Of each run after a warm-up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return times[1:]


def measure(args: argparse.Namespace, case: str, record: Callable[[str, Any], None]) -> None:
    """One case, in this process; figures are told as they come."""
    from hlwq_cli.measure.expert_traffic import expert_traffic
    from hlwq_cli.runtime.decode.generation import Generation
    from hlwq_cli.runtime.loading.load import load_model
    from hlwq_cli.runtime.modules.experts import HLWQExperts
    from hlwq_cli.runtime.offload.expert_cache import ExpertBudget, expert_cache_of, experts_per_token
    from hlwq_cli.runtime.offload.memory import host_memory_free

    fetch_ahead_at_most(args.ahead)
    free_before, start = host_memory_free(), time.perf_counter()
    room = {
        "slots": ExpertBudget.parse(args.slots, args.gpu_memory),
        "none": ExpertBudget(slots=1),
        "resident": None,
    }[case]
    model = load_model(args.folder, device=args.device, execution="coded", expert_budget=room)
    device: torch.device = model.device
    record("load_seconds", time.perf_counter() - start)
    cache = expert_cache_of(model)
    layers = [m for m in model.modules() if isinstance(m, HLWQExperts)]
    experts, k = layers[0].expert_count, experts_per_token(model.config)
    record("layers", len(layers))
    record("bytes_read", bytes_read(model, k))
    if cache is not None:
        record("slots", cache.slots)
        record("placed", cache.line())
        record("device_plans", cache.groups[0].device_assigns)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(10, model.config.get_text_config().vocab_size // 2, (1, PREFILL_TOKENS), generator=random).to(
        device
    )

    def answer(generation: Generation, prompt: int, tokens: int) -> None:
        some = ids[:, :prompt]
        generation.generate(
            input_ids=some,
            attention_mask=torch.ones_like(some),
            max_new_tokens=tokens,
            eos_token_id=None,
            pad_token_id=0,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
        )

    def decode(kind: str) -> None:
        table = None if kind == "own" else synthetic_topk_ids(kind, len(layers), experts, k)
        predictions = None if table is None else synthetic_predictions(table, experts, args.recall).to(device)
        table = None if table is None else table.to(device)
        generation = Generation(model)  # graphs hold the routing that they were captured with
        with override_routing(layers, table, predictions), torch.inference_mode():
            first = statistics.mean(seconds_of(lambda: answer(generation, PROMPT_TOKENS, 1), args.runs, device))
            seen = [] if cache is None else [cache.traffic()]
            seconds_of(lambda: answer(generation, PROMPT_TOKENS, 1), args.runs, device)
            seen += [] if cache is None else [cache.traffic()]
            whole = seconds_of(lambda: answer(generation, PROMPT_TOKENS, args.tokens + 1), args.runs, device)
            rates = [args.tokens / (t - first) for t in whole]
            figures: Figures = {"tokens_a_second": statistics.mean(rates), "decoding": generation.decoding}
            figures["deviation"] = statistics.stdev(rates) if len(rates) > 1 else 0.0
            if generation.decoder is not None and generation.decoder.uncapturable:
                figures["not_captured"] = generation.decoder.uncapturable
            if cache is not None:
                seen.append(cache.traffic())
                figures |= asdict(expert_traffic(cache, seen, (args.runs + 1) * args.tokens))
            record(kind, figures)
            if kind != "own" and device.type == "cuda":
                record_profile(kind, generation)

    def record_profile(kind: str, generation: Generation) -> None:
        """Of what 16 tokens took; the prompt and the first are taken off."""
        try:
            long, short = (profiled(lambda n=n: answer(generation, PROMPT_TOKENS, n)) for n in (17, 1))  # type: ignore[misc]
            kernels = per_token(by_kernel(long), by_kernel(short), 16)
            record(f"{kind}_profile", dict(list(kernels.items())[:12]))
            record(f"{kind}_causes", per_token(by_cause(long, len(layers)), by_cause(short, len(layers)), 16))
        except Exception as error:
            record(f"{kind}_profile", f"no profile: {error}")

    for kind in ("own", "uniform", "sticky"):
        decode(kind)
    generation = Generation(model)
    with torch.inference_mode():
        prefill = seconds_of(lambda: answer(generation, PREFILL_TOKENS, 1), args.runs, device)
    record("prefill_tokens_a_second", PREFILL_TOKENS / statistics.mean(prefill))
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        record("device_bytes_used", total - free)
        record("device_bytes_allocated_peak", torch.cuda.max_memory_allocated(device))
        record("device_bytes_reserved_peak", torch.cuda.max_memory_reserved(device))
    record("host_peak_rss", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    record("host_memory_taken", free_before - host_memory_free())


def device_memory_used() -> int:
    """Bytes, by the driver, of all processes on the first GPU; 0 where it cannot be asked."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.split()[0]) * 2**20
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return 0


def run_case(args: argparse.Namespace, case: str) -> Figures:
    """A case in a process of its own, watched from outside; what it told before it failed is kept."""
    baseline, peak, done = device_memory_used(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.5):
            peak = max(peak, device_memory_used())

    figures: Figures = {"case": case}
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    command = [sys.executable, __file__, *sys.argv[1:], "--only", case]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        timer = threading.Timer(args.timeout, child.kill)
        timer.start()
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                figures |= json.loads(line)
                print(case, line.strip(), file=sys.stderr, flush=True)
        code = child.wait()
        timer.cancel()
    done.set()
    watcher.join()
    if code:
        figures["failed"] = f"exit code {code}"
    if peak:
        figures["device_bytes_by_driver"] = peak - baseline
    return figures


def show(results: list[Figures]) -> None:
    """A table to paste."""
    print("\n| case | slots | routing | tok/s | hit rate | MB a token | MB ahead | copy bound tok/s | decoded |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in results:
        for kind in ("own", "uniform", "sticky"):
            if f := r.get(kind):
                cells = [r["case"], r.get("slots", "all"), kind, f"{f['tokens_a_second']:.1f} ± {f['deviation']:.1f}"]
                if "hit_rate" in f:
                    bound = f"{f['copy_bound']:.0f}" if f["copy_bound"] else ""
                    cells += [f"{f['hit_rate']:.3f}", f"{f['token_bytes'] / 1e6:.1f}", f"{f['ahead_bytes'] / 1e6:.1f}"]
                    cells.append(bound)
                else:
                    cells += [""] * 4
                print("| " + " | ".join(str(c) for c in [*cells, f["decoding"]]) + " |")
    print("\n| case | prefill 512 tok/s | device GB by the driver | host peak GB (RSS) | host GB taken | load s |")
    print("|---|---|---|---|---|---|")
    for r in results:
        driver = r.get("device_bytes_by_driver") or r.get("device_bytes_used") or 0
        cells = [f"{r.get('prefill_tokens_a_second', 0):.0f}"]
        cells += [f"{b / 1e9:.2f}" for b in (driver, r.get("host_peak_rss", 0), r.get("host_memory_taken", 0))]
        print("| " + " | ".join([r["case"], *cells, f"{r.get('load_seconds', 0):.1f}"]) + " |")
    for r in results:
        print(f"\n{r['case']}: {r.get('placed', '')} {r.get('failed', '')}")
        for kind in ("uniform", "sticky"):
            if isinstance(times := r.get(f"{kind}_profile"), dict):
                print(f"{kind}, us a token: " + ", ".join(f"{name} {us:.0f}" for name, us in times.items()))


def show_causes(results: list[Figures], device_rate: float) -> None:
    """Where a layer's time goes, beside what copying the bytes takes from memory that is read so fast."""
    print("\n| case | routing | cause | us a layer | copy bound us |\n|---|---|---|---|---|")
    for r in results:
        for kind in ("uniform", "sticky"):
            if causes := r.get(f"{kind}_causes"):
                least = {cause: size / device_rate for cause, size in r["bytes_read"].items()}
                if rate := r[kind].get("copy_rate"):
                    least["fetch"] = r[kind]["token_bytes"] / rate
                    least["fetch ahead (beside)"] = r[kind]["ahead_bytes"] / rate
                for row in cause_rows(causes, least, r["layers"]):
                    print(f"| {r['case']} | {kind} | {row} |")
                whole = 1e6 / r[kind]["tokens_a_second"] / r["layers"]
                print(f"| {r['case']} | {kind} | all, by the clock | {whole:.1f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--gpu-memory")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ahead", type=int, default=1, help="guesses of a layer that are fetched at most")
    parser.add_argument("--recall", type=float, default=0.79, help="share of drawn choices that are guessed")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--timeout", type=float, default=170, help="seconds for a case")
    parser.add_argument("--json", type=Path, help="where to leave all figures")
    parser.add_argument("--only", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.slots is None) == (args.gpu_memory is None):
        parser.error("give --gpu-memory or --slots")
    if args.only:
        measure(args, args.only, lambda key, value: print(json.dumps({key: value}), flush=True))
        return
    results = [run_case(args, case) for case in args.cases]
    show(results)
    if torch.cuda.is_available():
        show_causes(results, device_copy_rate(torch.device("cuda")))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))
    sys.exit(1 if any("failed" in r for r in results) else 0)


if __name__ == "__main__":
    main()
