"""Tokens a second of a mixture of experts whose experts lie outside the GPU, beside the same model resident.

    python scripts/bench_offload.py CODED_FOLDER --gpu-memory 8.6GB [--cases slots none resident] [--tokens 128]

Each case is a process of its own: `slots` has as many experts on the GPU as its memory holds, `none` one slot a layer
and scratch, `resident` all. In each, tokens are decoded with the model's own router, and with choices drawn beforehand
that lie on the device: `uniform`, and `sticky`, where each expert of the last token is kept with probability .45.
Random weights say nothing of real routing; these two bracket it. Reported: tokens a second (prompt left out), hit rate,
bytes fetched a token, the copy bound (measured copy rate over these bytes), prefill of 512 tokens, memory of device
(by the driver, context included) and host, and the device's time by kernel in a profile of a few tokens. `--slots N`
instead of `--gpu-memory` runs anywhere.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MethodType
from typing import Any

import torch

PROMPT, PREFILL, STICKY, DRAWN = 8, 512, 0.45, 1021
CASES = ("slots", "none", "resident")
Figures = dict[str, Any]


def drawn_choices(kind: str, layers: int, experts: int, k: int) -> torch.Tensor:
    """int64 (layers, DRAWN, k): each layer's experts at each step."""
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(layers, DRAWN, experts, generator=generator).argsort(-1)[..., :k]
    if kind == "sticky":
        for step in range(1, DRAWN):
            for layer in range(layers):
                before = table[layer, step - 1]
                kept = before[torch.rand(k, generator=generator) < STICKY].tolist()
                others = [e for e in torch.randperm(experts, generator=generator).tolist() if e not in before.tolist()]
                table[layer, step] = torch.tensor((kept + others)[:k])
    return table


@contextmanager
def routed(layers: list[Any], table: torch.Tensor | None) -> Iterator[None]:
    """Within, single tokens go to the experts of a table, whose steps are counted on the device."""
    if table is None:
        yield
        return
    step = torch.zeros(1, dtype=torch.int64, device=table.device)

    def forward(number: int, module: Any, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            if number == 0:
                step.add_(1).remainder_(DRAWN)
            index = table[number].index_select(0, step)
        return type(module).forward(module, x, index, weights)

    for number, layer in enumerate(layers):
        layer.forward = MethodType(lambda module, *args, number=number: forward(number, module, *args), layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


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


def measure(args: argparse.Namespace, case: str, tell: Callable[[str, Any], None]) -> None:
    """One case, in this process; figures are told as they come."""
    from hlwq_cli.measure.expert_traffic import expert_traffic
    from hlwq_cli.runtime.expert_cache import ExpertRoom, expert_cache_of, experts_per_token
    from hlwq_cli.runtime.experts import HLWQExperts
    from hlwq_cli.runtime.generation import Generation
    from hlwq_cli.runtime.loading import load_model
    from hlwq_cli.runtime.memory import host_memory_free

    free_before, start = host_memory_free(), time.perf_counter()
    room = {
        "slots": ExpertRoom.parse(args.slots, args.gpu_memory), "none": ExpertRoom(slots=1), "resident": None,
    }[case]  # fmt: skip
    model = load_model(args.folder, device=args.device, execution="coded", expert_room=room)
    device: torch.device = model.device
    tell("load_seconds", time.perf_counter() - start)
    cache = expert_cache_of(model)
    layers = [m for m in model.modules() if isinstance(m, HLWQExperts)]
    experts, k = layers[0].expert_count, experts_per_token(model.config)
    if cache is not None:
        tell("slots", cache.slots)
        tell("placed", cache.line())
        tell("device_plans", cache.groups[0].plans_itself)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(10, model.config.get_text_config().vocab_size // 2, (1, PREFILL), generator=random).to(device)

    def answer(generation: Generation, prompt: int, tokens: int) -> None:
        some = ids[:, :prompt]
        generation.generate(
            input_ids=some, attention_mask=torch.ones_like(some), max_new_tokens=tokens, eos_token_id=None,
            pad_token_id=0, do_sample=False, temperature=None, top_p=None, top_k=None,
        )  # fmt: skip

    def decode(kind: str) -> None:
        table = None if kind == "own" else drawn_choices(kind, len(layers), experts, k).to(device)
        generation = Generation(model)  # graphs hold the routing that they were captured with
        with routed(layers, table), torch.inference_mode():
            first = statistics.mean(seconds_of(lambda: answer(generation, PROMPT, 1), args.runs, device))
            seen = [] if cache is None else [cache.traffic()]
            seconds_of(lambda: answer(generation, PROMPT, 1), args.runs, device)
            seen += [] if cache is None else [cache.traffic()]
            whole = seconds_of(lambda: answer(generation, PROMPT, args.tokens + 1), args.runs, device)
            rates = [args.tokens / (t - first) for t in whole]
            figures: Figures = {"tokens_a_second": statistics.mean(rates), "decoding": generation.decoding}
            figures["deviation"] = statistics.stdev(rates) if len(rates) > 1 else 0.0
            if generation.decoder is not None and generation.decoder.uncapturable:
                figures["not_captured"] = generation.decoder.uncapturable
            if cache is not None:
                seen.append(cache.traffic())
                figures |= asdict(expert_traffic(cache, seen, (args.runs + 1) * args.tokens))
            tell(kind, figures)
            if kind != "own" and device.type == "cuda":
                tell(f"{kind}_profile", profile(lambda: answer(generation, PROMPT, 17), 16))

    for kind in ("own", "uniform", "sticky"):
        decode(kind)
    generation = Generation(model)
    with torch.inference_mode():
        prefill = seconds_of(lambda: answer(generation, PREFILL, 1), args.runs, device)
    tell("prefill_tokens_a_second", PREFILL / statistics.mean(prefill))
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        tell("device_bytes_used", total - free)
        tell("device_bytes_allocated_peak", torch.cuda.max_memory_allocated(device))
        tell("device_bytes_reserved_peak", torch.cuda.max_memory_reserved(device))
    tell("host_peak_rss", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    tell("host_memory_taken", free_before - host_memory_free())


def profile(work: Callable[[], Any], tokens: int) -> dict[str, float] | str:
    """Microseconds of device time a token by kernel, the longest twelve; prompt included."""
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            work()
            torch.cuda.synchronize()
        times: dict[str, float] = defaultdict(float)
        for event in found.key_averages():
            times[event.key[:60]] += event.self_device_time_total / tokens
        return dict(sorted(times.items(), key=lambda kv: -kv[1])[:12])
    except Exception as error:
        return f"no profile: {error}"


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
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
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
    print("\n| case | slots | routing | tok/s | hit rate | MB a token | copy bound tok/s | decoded |")
    print("|---|---|---|---|---|---|---|---|")
    for r in results:
        for kind in ("own", "uniform", "sticky"):
            if f := r.get(kind):
                cells = [r["case"], r.get("slots", "all"), kind, f"{f['tokens_a_second']:.1f} ± {f['deviation']:.1f}"]
                if "hit_rate" in f:
                    bound = f"{f['copy_bound']:.0f}" if f["copy_bound"] else ""
                    cells += [f"{f['hit_rate']:.3f}", f"{f['token_bytes'] / 1e6:.1f}", bound]
                else:
                    cells += ["", "", ""]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--gpu-memory")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
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
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))
    sys.exit(1 if any("failed" in r for r in results) else 0)


if __name__ == "__main__":
    main()
