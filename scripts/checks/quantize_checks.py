"""The checks of quantize.py: the command as a process, and what its output must satisfy."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hlwq_cli.checkpoint import CodedCheckpoint, Plan, open_coded, open_source
from hlwq_cli.checkpoint.format import JOURNAL, Manifest, TensorRecord, read_manifest, with_all_hashes
from hlwq_cli.checkpoint.io import DTYPES, build_header
from hlwq_cli.sizes import format_size
from hlwq_kernels import decode_rows

COMMAND = [sys.executable, "-m", "hlwq_cli.main"]
ONE_LAYER = "layers.0."


@dataclass(frozen=True)
class Run:
    """A finished command: seconds from Enter to prompt, peak memory by the kernel (ru_maxrss), standard output."""

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
        sys.exit(f"hlwq {' '.join(map(str, args))} exited with {process.returncode}")
    return Run(seconds, usage.ru_maxrss * 1024, out)


class Checks:
    """The list of checks and whether each passed."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, bool]] = []

    def add(self, what: str, found: str, held: bool) -> None:
        self.lines.append((what, found, held))
        print(f"| {what} | {found} | {'yes' if held else 'NO'} |", flush=True)


def manifest(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "hlwq_manifest.json").read_text())
    return document


def hashed_manifest(folder: Path) -> Manifest:
    """Return the manifest with a hash for every file; hashes of shards are computed from their bytes."""
    return with_all_hashes(folder, read_manifest(folder))


def check_result(checks: Checks, plan: Plan, out: Path, real: bool) -> None:
    found = manifest(out)
    flat = sum(len(t["shape"]) == 2 for t in found["coded"])
    experts = sum(t["shape"][0] for t in found["coded"] if len(t["shape"]) == 3)
    routers = sum(k["name"].endswith("router.proj.weight") for k in found["kept"])
    size = sum((out / f["name"]).stat().st_size for f in found["files"])
    checks.add("files written", str(len(found["files"]) + 1), all((out / f["name"]).is_file() for f in found["files"]))
    planned = sum(len(c.shape) == 2 for c in plan.coded), sum(c.shape[0] for c in plan.coded if len(c.shape) == 3)
    expected = (396, 7680, 30) if real else (*planned, routers)
    checks.add(
        "quantized layers, quantized experts, kept routers",
        f"{flat} + {experts:,}, {routers}",
        (flat, experts, routers) == expected,
    )
    expected = 17.6e9 if real else plan.output_bytes + 10**6
    checks.add("size of the result", format_size(size), abs(size / expected - 1) < (0.01 if real else 1))


def check_experts(checks: Checks, source: Path, out: Path, count: int, device: torch.device) -> None:
    """Decode random matrices and compare each one's error with that of its whole tensor."""
    original, checkpoint = open_source(str(source)), open_coded(out)
    stacks = [t for t in checkpoint.manifest.coded if len(t.shape) == 3] or list(checkpoint.manifest.coded)
    generator = random.Random(5)
    worst, errors = 0.0, []
    allowed = max(0.01, 10 / math.prod(stacks[0].shape[-2:]) ** 0.5)  # small matrices vary more
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
        f"{count} random expert matrices decoded: the error of each is within {allowed:.1%} of its tensor's",
        f"mean {mean:.3e}, {min(errors):.3e} to {max(errors):.3e}, off by {worst:.2%} at most",
        worst < allowed,
    )
    original.close()
    checkpoint.close()


def source_rows(source: Any, record: TensorRecord, first: int, rows: int) -> Iterable[torch.Tensor]:
    """Yield rows of a quantized tensor as stored in its source tensors."""
    for name in record.sources:
        info = source.tensors[name]
        begin, end = max(first, 0), min(first + rows, info.rows)
        if begin < end:
            yield source.read(info, begin, end - begin)
        first -= info.rows


def decoded_rows(
    checkpoint: CodedCheckpoint, record: TensorRecord, first: int, rows: int, device: torch.device
) -> torch.Tensor:
    """Decode rows of a quantized tensor on a device."""
    parts = []
    for info in checkpoint.stored(record):
        row = info.nbytes // math.prod(record.shape[:-1])
        data = checkpoint.read_bytes(info, first * row, rows * row)
        parts.append(torch.frombuffer(data, dtype=DTYPES[info.dtype]).view(rows, -1).to(device))
    codes, scales, *base = parts
    centroids = checkpoint.codebooks[record.bits].to(device)
    scheme = checkpoint.scheme(record)
    return decode_rows(
        codes, scales, base[0].flatten() if base else None, centroids, scheme.block_size, record.shape[-1]
    )


def third_of_bytes_written(out: Path, expected: Manifest) -> bool:
    """Return whether a third of the shards' bytes are on disk, in any files."""
    written = 0
    for path in out.glob("*.safetensors*"):
        with suppress(FileNotFoundError):  # renamed in the meantime
            written += path.stat().st_blocks * 512
    return written >= sum(f.size for f in expected.files if f.is_shard) / 3


def third_of_shards_complete(out: Path, expected: Manifest) -> bool:
    """Return whether a third of the shards are complete."""
    return num_complete_shards(out) >= sum(f.is_shard for f in expected.files) / 3


def check_kill_and_resume(
    checks: Checks, command: list[str], out: Path, expected: Manifest, when: Callable[[Path, Manifest], bool]
) -> None:
    """Kill the command once `when` holds, run it again, and compare the files."""
    shards = sum(f.is_shard for f in expected.files)
    process = subprocess.Popen([*COMMAND, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not when(out, expected):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    killed, done = process.wait() == -signal.SIGKILL, num_complete_shards(out)
    again = hlwq(*command)
    same = hashed_manifest(out) == expected
    checks.add(
        f"killed at: {when.__name__.replace('_', ' ')}, {done} of {shards}; resumed: the same files",
        f"{again.seconds:.1f} s to finish",
        killed and same,
    )


def num_complete_shards(out: Path) -> int:
    journal = out / JOURNAL
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def check_one_layer(checks: Checks, source: Path, folder: Path, device: str, coded: Path) -> None:
    """Quantize one layer on the CPU and on the device; every hash must also match the whole run."""
    part = folder / "one-layer"
    copy_layer(source, part)
    runs = {name: hlwq("quantize", part, folder / f"layer-{name}", "--device", name, "-q") for name in ("cpu", device)}
    found = [manifest(folder / f"layer-{name}") for name in ("cpu", device)]
    by_name = [{t["name"]: t["blake3"] for t in m["coded"] + m["kept"]} for m in found]
    whole = {t["name"]: t["blake3"] for t in manifest(coded)["coded"] + manifest(coded)["kept"]}
    same = by_name[0] == by_name[1] == {n: whole[n] for n in by_name[0]} and found[0]["files"] == found[1]["files"]
    seconds = ", ".join(f"{name} {run.seconds:.1f} s" for name, run in runs.items())
    checks.add(
        f"{len(by_name[0])} tensors of {ONE_LAYER}* have equal hashes on the CPU, on {device} and in the whole run",
        seconds,
        same and bool(by_name[0]),
    )


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
