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
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from copy_floor import Floor, copy_floor
from make_synthetic import ROOT, write_checkpoint

from hlwq_cli.checkpoint import CodedCheckpoint, Plan, load_recipe, make_plan, open_coded, open_source
from hlwq_cli.checkpoint.manifest import JOURNAL
from hlwq_cli.checkpoint.records import TensorRecord
from hlwq_cli.checkpoint.safetensors_file import DTYPES, build_header
from hlwq_cli.sizes import format_size
from hlwq_kernels import decode_rows

COMMAND = [sys.executable, "-m", "hlwq_cli.main"]
ONE_LAYER = "layers.0."


@dataclass(frozen=True)
class Run:
    """A command from Enter to prompt: seconds, the kernel's account of its largest memory, what it said."""

    seconds: float
    peak_bytes: int
    out: str


def hlwq(*args: str | Path, env: dict[str, str] | None = None) -> Run:
    start = time.time()
    process = subprocess.Popen([*COMMAND, *map(str, args)], stdout=subprocess.PIPE, env={**os.environ, **(env or {})})
    assert process.stdout is not None
    out = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.time() - start
    if process.returncode:
        sys.exit(f"hlwq {' '.join(map(str, args))} ended with {process.returncode}")
    return Run(seconds, usage.ru_maxrss * 1024, out)


class Checks:
    """What was promised and whether it held."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, bool]] = []

    def add(self, what: str, found: str, held: bool) -> None:
        self.lines.append((what, found, held))
        print(f"| {what} | {found} | {'yes' if held else 'NO'} |", flush=True)


def manifest(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "hlwq_manifest.json").read_text())
    return document


def hashes(folder: Path) -> dict[str, str]:
    return {f["name"]: f["sha256"] for f in manifest(folder)["files"]}


def check_result(checks: Checks, plan: Plan, out: Path, real: bool) -> None:
    found = manifest(out)
    flat = sum(len(t["shape"]) == 2 for t in found["coded"])
    experts = sum(t["shape"][0] for t in found["coded"] if len(t["shape"]) == 3)
    routers = sum(k["name"].endswith("router.proj.weight") for k in found["kept"])
    size = sum((out / f["name"]).stat().st_size for f in found["files"])
    checks.add("files written", str(len(found["files"]) + 1), all((out / f["name"]).is_file() for f in found["files"]))
    planned = sum(len(c.shape) == 2 for c in plan.coded), sum(c.shape[0] for c in plan.coded if len(c.shape) == 3)
    wanted = (396, 7680, 30) if real else (*planned, routers)
    checks.add("coded layers, coded experts, kept routers", f"{flat} + {experts:,}, {routers}",
               (flat, experts, routers) == wanted)  # fmt: skip
    expected = 17.6e9 if real else plan.output_bytes + 10**6
    checks.add("size of the result", format_size(size), abs(size / expected - 1) < (0.01 if real else 1))


def check_experts(checks: Checks, source: Path, out: Path, count: int, device: torch.device) -> None:
    """Decode random matrices, compare with their source, and the error with that of the whole tensor."""
    original, checkpoint = open_source(str(source)), open_coded(out)
    stacks = [t for t in checkpoint.manifest.coded if len(t.shape) == 3] or list(checkpoint.manifest.coded)
    generator = random.Random(5)
    worst, errors = 0.0, []
    allowed = max(0.01, 10 / math.prod(stacks[0].shape[-2:]) ** 0.5)  # chance does more to small matrices
    for _ in range(count):
        record = generator.choice(stacks)
        rows = record.shape[-2]
        first = rows * generator.randrange(math.prod(record.shape[:-2]))
        truth = torch.cat(list(source_rows(original, record, first, rows))).to(device).double()
        decoded = decoded_rows(checkpoint, record, first, rows, device).double()
        errors.append(float((decoded - truth).square().sum() / truth.square().sum()))
        worst = max(worst, abs(errors[-1] / record.nmse - 1))
    mean = sum(errors) / len(errors)
    checks.add(
        f"{count} random expert matrices decoded: error of each within {allowed:.1%} of its tensor's",
        f"mean {mean:.3e}, {min(errors):.3e} to {max(errors):.3e}, off by {worst:.2%} at most", worst < allowed,
    )  # fmt: skip
    original.close()
    checkpoint.close()


def source_rows(source: Any, record: TensorRecord, first: int, rows: int) -> Iterable[torch.Tensor]:
    """Rows of a coded tensor as its source tensors hold them."""
    for name in record.sources:
        info = source.tensors[name]
        begin, end = max(first, 0), min(first + rows, info.rows)
        if begin < end:
            yield source.read(info, begin, end - begin)
        first -= info.rows


def decoded_rows(
    checkpoint: CodedCheckpoint, record: TensorRecord, first: int, rows: int, device: torch.device
) -> torch.Tensor:
    """Rows of a coded tensor, decoded on a device."""
    parts = []
    for info in checkpoint.stored(record):
        row = info.nbytes // math.prod(record.shape[:-1])
        data = checkpoint.read_bytes(info, first * row, rows * row)
        parts.append(torch.frombuffer(data, dtype=DTYPES[info.dtype]).view(rows, -1).to(device))
    codes, scales, *base = parts
    centroids = checkpoint.codebooks[record.bits].to(device)
    scheme = checkpoint.scheme(record)
    return decode_rows(codes, scales, base[0].flatten() if base else None, centroids, scheme.block_size,
                       record.shape[-1])  # fmt: skip


def killed_and_resumed(checks: Checks, command: list[str], out: Path, wanted: dict[str, str], shards: int) -> None:
    process = subprocess.Popen([*COMMAND, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and whole_shards(out) < math.ceil(shards / 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    killed, done = process.wait() == -signal.SIGKILL, whole_shards(out)
    again = hlwq(*command)
    same = hashes(out) == wanted
    checks.add(f"killed with {done} of {shards} shards whole, given again: the same files",
               f"{again.seconds:.1f} s for the rest", killed and same)  # fmt: skip


def whole_shards(out: Path) -> int:
    journal = out / JOURNAL
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def check_one_layer(checks: Checks, source: Path, folder: Path, device: str, coded: Path) -> None:
    """Code one layer on the CPU and on the device; every hash must be that of the whole run, too."""
    part = folder / "one-layer"
    copy_layer(source, part)
    runs = {name: hlwq("quantize", part, folder / f"layer-{name}", "--device", name, "-q") for name in ("cpu", device)}
    found = [manifest(folder / f"layer-{name}") for name in ("cpu", device)]
    by_name = [{t["name"]: t["sha256"] for t in m["coded"] + m["kept"]} for m in found]
    whole = {t["name"]: t["sha256"] for t in manifest(coded)["coded"] + manifest(coded)["kept"]}
    same = by_name[0] == by_name[1] == {n: whole[n] for n in by_name[0]} and found[0]["files"] == found[1]["files"]
    seconds = ", ".join(f"{name} {run.seconds:.1f} s" for name, run in runs.items())
    checks.add(f"{len(by_name[0])} tensors of {ONE_LAYER}* have one hash by cpu, {device} and the whole run", seconds,
               same and bool(by_name[0]))  # fmt: skip


def copy_layer(source: Path, part: Path) -> None:
    original = open_source(str(source))
    chosen = [t for n, t in original.tensors.items() if ONE_LAYER in n]
    part.mkdir()
    shutil.copy(source / "config.json", part)
    with (part / "model.safetensors").open("wb") as file:
        file.write(build_header([(t.name, DTYPES[t.dtype], t.shape) for t in chosen], {"format": "pt"}))
        for info in chosen:
            file.write(original.read_bytes(info, 0, info.nbytes))
    original.close()


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


def timed(command: list[str], trace: Path) -> tuple[Run, dict[str, Any]]:
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
    work = [e for e in trace["traceEvents"] if e["ph"] == "X" and e["name"] in ("read", "hash file", "write", "sync")]
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
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 8, 16], help="of copying")
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
    timed([*command, "-q"], trace)
    shutil.rmtree(out)
    run, document = timed([*command, "-q"], trace)
    show_speed(run, document, floors)
    print("| check | found | holds |\n|---|---|---|")
    check_result(checks, plan, out, args.config.name == "gemma4-26b.json")
    opened.close()
    verify = hlwq("inspect", out, "--verify", "-q")
    checks.add("`hlwq inspect --verify`", f"{verify.out.strip()}, {verify.seconds:.1f} s", verify.out == "ok\n")
    place = torch.device("cuda" if args.device.startswith("cuda") else "cpu")
    check_experts(checks, source, out, args.experts, place)
    check_one_layer(checks, source, folder, args.device, out)
    wanted = hashes(out)
    shutil.rmtree(out)
    shards = sum(n.endswith(".safetensors") for n in wanted)
    killed_and_resumed(checks, [*command, "-q"], out, wanted, shards)
    if args.keep:
        shutil.move(out, args.keep)
    return checks


if __name__ == "__main__":
    main()
