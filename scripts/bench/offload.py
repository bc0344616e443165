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
import subprocess
import sys
import threading
from pathlib import Path

import torch

from scripts.bench.offloading.offload_case import Case, Figures
from scripts.bench.offloading.offload_tables import show, show_causes
from scripts.bench.time_by_cause import device_copy_rate

CASES = ("slots", "none", "resident")


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
