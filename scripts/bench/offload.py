"""Decode speed of a MoE model whose experts are offloaded from the GPU, compared with the same model resident.

    python scripts/bench/offload.py CODED_FOLDER --gpu-memory 8.6GB [--cases slots none resident] [--tokens 128]
        [--ahead 1] [--recall .79]

Each case runs in its own process. `slots` keeps as many experts on the GPU as the given memory holds, `none` one slot
per layer plus scratch, `resident` all. Each decodes tokens with the model's own router and with two synthetic routings
that lie on the device: `uniform`, and `sticky`, where each expert of the last token is kept with probability .45.
Random weights say nothing about real routing; these two bracket it. Predictions of synthetic routings are synthetic,
too: each expert is predicted with probability `--recall`, by default that of the bundled sample (studies/prefetch.py).
`--ahead` is the maximum number of a layer's predicted experts to prefetch; 0 turns prefetching off.

Reported: tokens per second (without the prompt), hit rate, bytes fetched per token, the copy bound (measured copy rate
over these bytes), prefill of 512 tokens, memory of the device (as the driver reports it, including the context) and of
the host. A profile of a few tokens gives the device's time by kernel and by cause, with the minimum time that copying
the bytes takes (time_by_cause.py). `--slots N` instead of `--gpu-memory` also runs without a GPU.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
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
ROUTINGS = ("own", "uniform", "sticky")
Figures = dict[str, Any]


def limit_prefetch(groups: Iterable[Any], experts: int) -> None:
    """Limit the experts prefetched per layer, of a model that has not run yet."""
    from hlwq_kernels.offload import OffloadedLayer

    for slots in groups:
        slots.prefetch_list = slots.prefetch_list.empty(experts, slots.device)
    if not experts:
        setattr(OffloadedLayer, "prefetch", lambda *args: None)  # noqa: B010


def seconds_of(work: Callable[[], Any], runs: int, device: torch.device) -> list[float]:
    """Return the seconds of each run after one warm-up run."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return times[1:]


class Case:
    """One case, measured in this process; each figure is printed as a line of JSON as soon as it is known."""

    def __init__(self, args: argparse.Namespace, case: str) -> None:
        from hlwq_cli.measure.expert_traffic import expert_traffic
        from hlwq_cli.runtime.decode import Generation
        from hlwq_cli.runtime.loading import load_model
        from hlwq_cli.runtime.modules import HLWQExperts
        from hlwq_cli.runtime.offload import ExpertBudget, expert_cache_of, experts_per_token, host_memory_free

        self.args, self.expert_traffic, self.new_generation = args, expert_traffic, Generation
        self.host_memory_free, self.free_before = host_memory_free, host_memory_free()
        start = time.perf_counter()
        budget = {
            "slots": ExpertBudget.parse(args.slots, args.gpu_memory),
            "none": ExpertBudget(slots=1),
            "resident": None,
        }[case]
        self.model = load_model(args.folder, device=args.device, execution="coded", expert_budget=budget)
        self.device: torch.device = self.model.device
        self.cache = expert_cache_of(self.model)
        limit_prefetch(() if self.cache is None else self.cache.groups, args.ahead)
        self.layers = [m for m in self.model.modules() if isinstance(m, HLWQExperts)]
        self.top_k = experts_per_token(self.model.config)
        record("load_seconds", time.perf_counter() - start)
        random, vocabulary = torch.Generator().manual_seed(0), self.model.config.get_text_config().vocab_size
        self.ids = torch.randint(10, vocabulary // 2, (1, PREFILL_TOKENS), generator=random).to(self.device)

    def run(self) -> None:
        """Decode with each routing, then measure prefill and memory."""
        record("layers", len(self.layers))
        record("bytes_read", bytes_read(self.model, self.top_k))
        if self.cache is not None:
            record("slots", self.cache.slots)
            record("placed", self.cache.line())
            record("device_plans", self.cache.groups[0].device_assigns)
        for routing in ROUTINGS:
            self.decode(routing)
        generation = self.new_generation(self.model)
        with torch.inference_mode():
            prefill = self.seconds(generation, PREFILL_TOKENS, 1)
        record("prefill_tokens_a_second", PREFILL_TOKENS / statistics.mean(prefill))
        self.record_memory()

    def record_memory(self) -> None:
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            record("device_bytes_used", total - free)
            record("device_bytes_allocated_peak", torch.cuda.max_memory_allocated(self.device))
            record("device_bytes_reserved_peak", torch.cuda.max_memory_reserved(self.device))
        record("host_peak_rss", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        record("host_memory_taken", self.free_before - self.host_memory_free())

    def answer(self, generation: Any, prompt: int, tokens: int) -> None:
        """Decode exactly `tokens` greedy tokens after the first `prompt` tokens."""
        ids = self.ids[:, :prompt]
        generation.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            eos_token_id=None,
            pad_token_id=0,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
        )

    def seconds(self, generation: Any, prompt: int, tokens: int) -> list[float]:
        return seconds_of(lambda: self.answer(generation, prompt, tokens), self.args.runs, self.device)

    def decode(self, routing: str) -> None:
        """Measure decoding with a routing: speed, traffic and, on a GPU, a profile."""
        table = predictions = None
        if routing != "own":
            experts = self.layers[0].expert_count
            table = synthetic_topk_ids(routing, len(self.layers), experts, self.top_k)
            predictions = synthetic_predictions(table, experts, self.args.recall).to(self.device)
            table = table.to(self.device)
        generation = self.new_generation(self.model)  # CUDA graphs keep the routing that they were captured with
        with override_routing(self.layers, table, predictions), torch.inference_mode():
            record(routing, self.decode_figures(generation))
            if routing != "own" and self.device.type == "cuda":
                self.record_profile(routing, generation)

    def decode_figures(self, generation: Any) -> Figures:
        first = statistics.mean(self.seconds(generation, PROMPT_TOKENS, 1))
        traffic = self.traffic()
        self.seconds(generation, PROMPT_TOKENS, 1)
        traffic += self.traffic()
        whole = self.seconds(generation, PROMPT_TOKENS, self.args.tokens + 1)
        rates = [self.args.tokens / (t - first) for t in whole]
        figures: Figures = {"tokens_a_second": statistics.mean(rates), "decoding": generation.decoding}
        figures["deviation"] = statistics.stdev(rates) if len(rates) > 1 else 0.0
        if generation.decoder is not None and generation.decoder.graph_error:
            figures["not_captured"] = generation.decoder.graph_error
        if self.cache is not None:
            traffic += self.traffic()
            tokens = (self.args.runs + 1) * self.args.tokens
            figures |= asdict(self.expert_traffic(self.cache, traffic, tokens))
        return figures

    def traffic(self) -> list[Any]:
        return [] if self.cache is None else [self.cache.traffic()]

    def record_profile(self, routing: str, generation: Any) -> None:
        """Record the device's time of 16 tokens: a profile of 17 minus one of 1."""
        try:
            long, short = (profiled(partial(self.answer, generation, PROMPT_TOKENS, n)) for n in (17, 1))
            kernels = per_token(by_kernel(long), by_kernel(short), 16)
            record(f"{routing}_profile", dict(list(kernels.items())[:12]))
            layers = len(self.layers)
            record(f"{routing}_causes", per_token(by_cause(long, layers), by_cause(short, layers), 16))
        except Exception as error:
            record(f"{routing}_profile", f"no profile: {error}")


def record(key: str, value: Any) -> None:
    """Print a figure for the parent process."""
    print(json.dumps({key: value}), flush=True)


def device_memory_used() -> int:
    """Return the bytes that all processes use on the first GPU, by the driver; 0 if nvidia-smi fails."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.split()[0]) * 2**20
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return 0


def run_case(args: argparse.Namespace, case: str) -> Figures:
    """Run a case in its own process and sample the device's memory; keep what it reported before a failure."""
    baseline, peak, done = device_memory_used(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.5):
            peak = max(peak, device_memory_used())

    figures: Figures = {"case": case}
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    command = [sys.executable, __file__, *sys.argv[1:], "--only", case]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
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
    """Print the tables in Markdown."""
    print("\n| case | slots | routing | tok/s | hit rate | MB per token | MB prefetched | copy bound tok/s | decoded |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in results:
        for routing in ROUTINGS:
            if f := r.get(routing):
                cells = [
                    r["case"],
                    r.get("slots", "all"),
                    routing,
                    f"{f['tokens_a_second']:.1f} ± {f['deviation']:.1f}",
                ]
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
        for routing in ROUTINGS[1:]:
            if isinstance(times := r.get(f"{routing}_profile"), dict):
                print(f"{routing}, us per token: " + ", ".join(f"{name} {us:.0f}" for name, us in times.items()))


def show_causes(results: list[Figures], device_rate: float) -> None:
    """Print a layer's time by cause, and the time to copy its bytes at the measured rates."""
    print("\n| case | routing | cause | us per layer | copy bound us |\n|---|---|---|---|---|")
    for r in results:
        for routing in ROUTINGS[1:]:
            if causes := r.get(f"{routing}_causes"):
                least = {cause: size / device_rate for cause, size in r["bytes_read"].items()}
                if rate := r[routing].get("copy_rate"):
                    least["fetch"] = r[routing]["token_bytes"] / rate
                    least["prefetch (side stream)"] = r[routing]["ahead_bytes"] / rate
                for row in cause_rows(causes, least, r["layers"]):
                    print(f"| {r['case']} | {routing} | {row} |")
                whole = 1e6 / r[routing]["tokens_a_second"] / r["layers"]
                print(f"| {r['case']} | {routing} | total, by the clock | {whole:.1f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--gpu-memory")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--ahead", type=int, default=1, help="maximum number of a layer's predicted experts to prefetch"
    )
    parser.add_argument("--recall", type=float, default=0.79, help="fraction of synthetic choices that are predicted")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--timeout", type=float, default=170, help="seconds per case")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--only", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.slots is None) == (args.gpu_memory is None):
        parser.error("give either --gpu-memory or --slots")
    if args.only:
        Case(args, args.only).run()
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
