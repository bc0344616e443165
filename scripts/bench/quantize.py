"""Time the headline command on its real workload, from Enter to prompt, and check what it wrote.

    python scripts/bench/quantize.py /dev/shm/hlwq [--config tests/data/gemma4-26b.json] [--keep DIR] [--trace FILE]
    python scripts/bench/quantize.py DISK/hlwq --layers 28 --no-checks --runs 1

The folder may be in memory or on a disk. Steps:

1. Write a checkpoint with the configuration's names and shapes and random weights (synthetic_model.py).
2. Time reading it and writing as much as the result holds, by several numbers of threads (copy_baseline.py).
3. Run `hlwq quantize` as a user types it, twice; then time copying again, if there is room.
4. Run `hlwq inspect --verify`, compare random expert matrices with their source, kill the command and resume it, and
   quantize one layer on the CPU and on the device.

Needs room for the checkpoint and one result. --keep moves the last result to a folder. Random weights show speed and
correctness of the pipeline only; they say nothing about a model's quality.
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

from hlwq_cli.checkpoint import Plan, load_recipe, make_plan, open_source
from hlwq_cli.sizes import format_size
from scripts.bench.copy_baseline import CopyTime, drop_page_cache, time_copy
from scripts.bench.synthetic_model import ROOT, write_checkpoint
from scripts.checks.quantize_checks import (
    Checks,
    Run,
    check_experts,
    check_kill_and_resume,
    check_one_layer,
    check_result,
    hashed_manifest,
    hlwq,
    third_of_bytes_written,
    third_of_shards_complete,
)


def stages(trace: dict[str, Any], started: float, ended: float) -> list[tuple[str, float, float, float, float]]:
    """Return per stage: name, start, end, seconds in which any thread was in it, and the sum over threads."""
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


def keep_layers(text: dict[str, Any], count: int) -> None:
    """Reduce a text configuration to its last layers. Gemma 4's last layer differs from the others, so it is kept."""
    gone = len(text["layer_types"]) - count
    text["num_hidden_layers"] = count
    text["layer_types"] = text["layer_types"][gone:]
    of_layers = text.get("per_layer_config") or {}
    text["per_layer_config"] = {f"{int(n) - gone:02}": of_layers[n] for n in of_layers if int(n) >= gone}


def print_copy(copy_time: CopyTime) -> CopyTime:
    """Print a copy's time at once, so that a later failure does not lose it."""
    print(f"Copy with {copy_time.threads} threads, {copy_time.when}: {copy_time.seconds:.2f} s.", flush=True)
    return copy_time


def timed(command: list[str], source: Path, trace: Path) -> tuple[Run, dict[str, Any]]:
    drop_page_cache(source)
    started = time.time()
    run = hlwq(*command, env={"HLWQ_TRACE": str(trace)})
    document = json.loads(trace.read_text())
    print(f"\n`hlwq {' '.join(command)}`: **{run.seconds:.2f} s** from Enter to prompt\n")
    print("| stage | from | to | seconds | sum over threads |\n|---|---|---|---|---|")
    for name, begin, end, covered, total in stages(document, started, started + run.seconds):
        print(f"| {name} | {begin:.2f} | {end:.2f} | {covered:.2f} | {total:.1f} |")
    return run, document


def show_speed(run: Run, trace: dict[str, Any], copies: list[CopyTime]) -> None:
    work = [e for e in trace["traceEvents"] if e["ph"] == "X" and e["name"] in ("read", "hash tensor", "write", "sync")]
    begin, end = min(e["ts"] for e in work) / 1e6, max(e["ts"] + e["dur"] for e in work) / 1e6
    print(
        f"\n| read {format_size(copies[0].read)}, write {format_size(copies[0].written)} | seconds "
        f"| first byte read to last shard renamed, {end - begin:.2f} s | Enter to prompt, {run.seconds:.2f} s |"
        "\n|---|---|---|---|"
    )
    for copy_time in copies:
        times = " | ".join(f"{seconds / copy_time.seconds:.2f} times" for seconds in (end - begin, run.seconds))
        threads = f"{copy_time.threads} thread{'s'[: copy_time.threads > 1]}"
        print(f"| {threads}, {copy_time.when} | {copy_time.seconds:.2f} | {times} |")
    device = trace["otherData"].get("peak_device_bytes", 0)
    print(
        f"\nPeak memory: {format_size(run.peak_bytes)} of the host (including pages of libraries and pinned memory), "
        f"{format_size(device)} of the device (as torch reports it, without the CUDA context).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="must not exist; removed at the end")
    parser.add_argument("--config", type=Path, default=ROOT / "tests" / "data" / "gemma4-26b.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, help="keep only this many of the last layers")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[16, 1, 16], help="threads of the copies, run one after the other"
    )
    parser.add_argument("--runs", type=int, default=2, help="runs of the command; the last is compared with copying")
    parser.add_argument("--no-checks", action="store_true", help="speed only")
    parser.add_argument("--max-shard-size", default="2GB")
    parser.add_argument("--experts", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="where to move the result")
    parser.add_argument("--trace", type=Path, help="where to write the last run's trace")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    if args.folder.exists():
        sys.exit(f"{args.folder} already exists")
    args.folder.mkdir(parents=True)
    try:
        checks = measure(args, args.folder)
    finally:
        shutil.rmtree(args.folder)
    sys.exit(0 if all(held for _, _, held in checks.lines) else 1)


def measure(args: argparse.Namespace, folder: Path) -> Checks:
    """Run all steps in order and print the results."""
    source, out, trace = folder / "model", folder / "coded", args.trace or folder / "trace.json"
    config, checks = json.loads(args.config.read_text()), Checks()
    if args.layers:
        keep_layers(config["text_config"], args.layers)
    start = time.perf_counter()
    written = write_checkpoint(source, config)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    layers = f", {args.layers} layers" if args.layers else ""
    print(
        f"{args.config.stem}{layers}: {format_size(written)} of random weights, written in "
        f"{time.perf_counter() - start:.1f} s. {name}, {os.cpu_count()} CPUs, "
        f"torch {torch.__version__}."
    )
    print(
        "Random weights show speed and correctness of the pipeline only; they say nothing about a model's quality.",
        flush=True,
    )
    opened = open_source(str(source))
    plan = make_plan(opened, load_recipe(bits=5))
    fraction = plan.output_bytes / plan.source_bytes
    copies = [print_copy(time_copy(source, folder / "copied", fraction, n, "before")) for n in args.threads]
    command = ["quantize", str(source), str(out), "--device", args.device, "--max-shard-size", args.max_shard_size]
    for number in range(args.runs):
        if number:
            shutil.rmtree(out)
        run, document = timed([*command, "-q"], source, trace)
    if shutil.disk_usage(folder).free > 1.01 * plan.output_bytes:
        copies.append(print_copy(time_copy(source, folder / "copied", fraction, args.threads[-1], "after")))
    show_speed(run, document, copies)
    opened.close()
    if not args.no_checks:
        check(checks, plan, source, out, args, [*command, "-q"])
    if args.keep:
        shutil.move(out, args.keep)
    return checks


def check(checks: Checks, plan: Plan, source: Path, out: Path, args: argparse.Namespace, command: list[str]) -> None:
    """Check everything that is promised of the result; the kill-and-resume checks write it again."""
    print("| check | found | passed |\n|---|---|---|")
    check_result(checks, plan, out, args.config.name == "gemma4-26b.json" and not args.layers)
    verify = hlwq("inspect", out, "--verify", "-q")
    checks.add("`hlwq inspect --verify`", f"{verify.out.strip()}, {verify.seconds:.1f} s", verify.out == "ok\n")
    device = torch.device("cuda" if args.device.startswith("cuda") else "cpu")
    check_experts(checks, source, out, args.experts, device)
    check_one_layer(checks, source, args.folder, args.device, out)
    expected = hashed_manifest(out)
    for when in (third_of_bytes_written, third_of_shards_complete):
        shutil.rmtree(out)
        check_kill_and_resume(checks, command, out, expected, when)


if __name__ == "__main__":
    main()
