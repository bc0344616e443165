"""The headline command on its real workload, from Enter to prompt: makes it, times it, checks what it made.

    python scripts/bench_quantize.py /dev/shm/hlwq [--config tests/data/gemma4-26b.json] [--keep DIR] [--trace FILE]

In the folder, best in memory: a checkpoint of the configuration's names and shapes with random weights
(make_synthetic.py); reading it and writing as much as the result has, by some numbers of threads (copy_floor.py); then
`hlwq quantize` twice as a user types it, `hlwq inspect --verify`, random expert matrices against their source, the
command killed when a third of its shards are whole and given again, and one layer coded by the CPU and by the device.
Needs room for the checkpoint and one result beside it. --keep moves the last result there.

Random weights prove speed and plumbing only: they say nothing of a model's quality.
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from copy_floor import Floor, copy_floor, forget
from make_synthetic import ROOT, write_checkpoint
from quantize_checks import (
    Checks,
    Run,
    check_experts,
    check_one_layer,
    check_result,
    hashed,
    hlwq,
    killed_and_resumed,
)  # fmt: skip

from hlwq_cli.checkpoint import load_recipe, make_plan, open_source
from hlwq_cli.sizes import format_size


def stages(trace: dict[str, Any], started: float, ended: float) -> list[tuple[str, float, float, float, float]]:
    """By stage: when it began and ended, seconds that any thread was in it, and seconds of all threads together."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            begin = event["ts"] / 1e6 - started
            spans.setdefault(event["name"], []).append((begin, begin + event["dur"] / 1e6))
    rows = []
    for name, times in spans.items():
        covered, end = 0.0, -math.inf
        for a, b in sorted(times):
            covered += max(0.0, b - max(a, end))
            end = max(end, b)
        rows.append((name, min(a for a, _ in times), end, covered, sum(b - a for a, b in times)))
    last = max(row[2] for row in rows)
    return [*sorted(rows, key=lambda r: r[1]), ("end Python", last, ended - started, ended - started - last, 0.0)]


def timed(command: list[str], source: Path, trace: Path) -> tuple[Run, dict[str, Any]]:
    forget(source)
    started = time.time()
    run = hlwq(*command, env={"HLWQ_TRACE": str(trace)})
    document = json.loads(trace.read_text())
    print(f"\n`hlwq {' '.join(command)}`: **{run.seconds:.2f} s** from Enter to prompt\n")
    print("| stage | from | to | seconds | of all threads |\n|---|---|---|---|---|")
    for name, begin, end, covered, total in stages(document, started, started + run.seconds):
        print(f"| {name} | {begin:.2f} | {end:.2f} | {covered:.2f} | {total:.1f} |")
    return run, document


def show_speed(run: Run, trace: dict[str, Any], floors: list[Floor]) -> None:
    best = min(floors, key=lambda f: f.seconds)
    work = [e for e in trace["traceEvents"] if e["ph"] == "X" and e["name"] in ("read", "hash tensor", "write", "sync")]
    begin, end = min(e["ts"] for e in work) / 1e6, max(e["ts"] + e["dur"] for e in work) / 1e6
    print(f"\n| | seconds | of copying, {best.threads} threads |\n|---|---|---|")
    for floor in floors:
        print(f"| read {format_size(floor.read)}, write {format_size(floor.written)}, {floor.threads} threads "
              f"| {floor.seconds:.2f} | {floor.seconds / best.seconds:.2f} |")  # fmt: skip
    print(f"| first byte read to last shard renamed | {end - begin:.2f} | {(end - begin) / best.seconds:.2f} |")
    print(f"| Enter to prompt | {run.seconds:.2f} | {run.seconds / best.seconds:.2f} |")
    device = trace["otherData"].get("peak_device_bytes", 0)
    print(f"\nPeak memory: {format_size(run.peak_bytes)} of the host (pages of libraries and pinned ones included), "
          f"{format_size(device)} of the device (as torch holds it, its context aside).\n")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="must not exist; removed at the end")
    parser.add_argument("--config", type=Path, default=ROOT / "tests" / "data" / "gemma4-26b.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, nargs="+", default=[4, 16], help="of copying")
    parser.add_argument("--max-shard-size", default="2GB")
    parser.add_argument("--experts", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="where to move the result")
    parser.add_argument("--trace", type=Path, help="where to leave the second run's timeline")
    args = parser.parse_args()
    if args.folder.exists():
        sys.exit(f"{args.folder} is there already")
    args.folder.mkdir(parents=True)
    try:
        checks = measure(args, args.folder)
    finally:
        shutil.rmtree(args.folder)
    sys.exit(0 if all(held for _, _, held in checks.lines) else 1)


def measure(args: argparse.Namespace, folder: Path) -> Checks:
    """Everything, in order; prints as it goes."""
    source, out, trace = folder / "model", folder / "coded", args.trace or folder / "trace.json"
    config, checks = json.loads(args.config.read_text()), Checks()
    start = time.perf_counter()
    written = write_checkpoint(source, config)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    print(f"{args.config.stem}: {format_size(written)} of random weights, made in {time.perf_counter() - start:.1f} s. "
          f"{name}, {os.cpu_count()} processors, torch {torch.__version__}.")  # fmt: skip
    print("Random weights prove speed and plumbing only: they say nothing of a model's quality.", flush=True)
    opened = open_source(str(source))
    plan = make_plan(opened, load_recipe(bits=5))
    share = plan.output_bytes / plan.source_bytes
    floors = [copy_floor(source, folder / "copied", share, n) for n in args.threads]
    command = ["quantize", str(source), str(out), "--device", args.device, "--max-shard-size", args.max_shard_size]
    timed([*command, "-q"], source, trace)
    shutil.rmtree(out)
    run, document = timed([*command, "-q"], source, trace)
    show_speed(run, document, floors)
    print("| check | found | holds |\n|---|---|---|")
    check_result(checks, plan, out, args.config.name == "gemma4-26b.json")
    opened.close()
    verify = hlwq("inspect", out, "--verify", "-q")
    checks.add("`hlwq inspect --verify`", f"{verify.out.strip()}, {verify.seconds:.1f} s", verify.out == "ok\n")
    place = torch.device("cuda" if args.device.startswith("cuda") else "cpu")
    check_experts(checks, source, out, args.experts, place)
    check_one_layer(checks, source, folder, args.device, out)
    wanted = hashed(out)
    shutil.rmtree(out)
    killed_and_resumed(checks, [*command, "-q"], out, wanted)
    if args.keep:
        shutil.move(out, args.keep)
    return checks


if __name__ == "__main__":
    main()
