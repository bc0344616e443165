"""Time a calibrated run from Enter to prompt, by part, and its peaks of memory; check that it repeats its bytes.

    python scripts/bench/calibrate.py /dev/shm/hlwq [--config tests/data/gemma4-26b.json] [--tokens 65536] [--runs 2]
    python scripts/bench/calibrate.py /tmp/hlwq --config SMALL.json --tokens 512 --length 64 --device cpu

Steps: write a checkpoint with the configuration's names and shapes and random weights (synthetic_model.py); quantize it
as a process of its own with random tokens, given, so that no text is generated; print where the time went; do the same
again and compare all bytes. A trace waits for the GPU after each part, so that its time is not counted as the next
part's: the run without a trace, which comes first, is the one to quote. Random weights show speed and memory only.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from hlwq_cli.checkpoint import load_recipe, quantize, recorded
from hlwq_cli.devices import find_devices
from hlwq_cli.runtime.calibration import StreamCalibration, token_inputs
from hlwq_cli.sizes import format_size
from scripts.bench.quantize import keep_layers, stages
from scripts.bench.synthetic_model import ROOT, write_checkpoint

RESULT = "result: "


def random_tokens(vocabulary: int, tokens: int, length: int) -> torch.Tensor:
    """Return int64 (sequences, length), the same for the same arguments."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, vocabulary, (max(1, tokens // length), length), generator=generator)


def run(args: argparse.Namespace) -> None:
    """The timed process: quantize, and print what a parent reads."""
    config = json.loads((args.folder / "source" / "config.json").read_text())
    vocabulary = config.get("text_config", config)["vocab_size"]
    kind = find_devices(args.device)[0].type
    inputs = token_inputs([random_tokens(vocabulary, args.tokens, args.length)], kind)
    calibration = StreamCalibration(inputs, args.device, {"text": "random tokens"})
    recipe, out = load_recipe(bits=args.bits), args.folder / "out"
    with recorded() as trace:
        result = quantize(
            str(args.folder / "source"), out, recipe, device=args.device, trace=trace, calibration=calibration
        )
    coded = result.manifest.coded
    losses = [t.loss for t in coded if t.loss is not None]
    peak = torch.cuda.max_memory_reserved() if kind == "cuda" else 0
    found = {
        "digest": result.manifest.digest,
        "calibrated": len(losses),
        "coded": len(coded),
        "loss": sum(losses) / max(len(losses), 1),
        "device_bytes": peak,
        "host_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(RESULT + json.dumps(found), flush=True)


def timed(args: argparse.Namespace, trace: Path | None) -> tuple[float, float, dict[str, float | str]]:
    """Run `run` as a process; return when it started and ended, and its result."""
    shutil.rmtree(args.folder / "out", ignore_errors=True)
    command = [sys.executable, "-m", "scripts.bench.calibrate", str(args.folder), "--run", "--device", args.device]
    command += ["--tokens", str(args.tokens), "--length", str(args.length), "--bits", str(args.bits)]
    environment = {k: v for k, v in os.environ.items() if k != "HLWQ_TRACE"}
    environment |= {"HLWQ_TRACE": str(trace)} if trace else {}
    started = time.time()
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    ended = time.time()
    if process.returncode:
        sys.exit(process.stderr[-4000:])
    line = next(line for line in process.stdout.splitlines() if line.startswith(RESULT))
    return started, ended, json.loads(line.removeprefix(RESULT))


def report(args: argparse.Namespace) -> None:
    """Print the times of several runs, and the parts of one more."""
    digests = set()
    for number in range(args.runs):
        started, ended, found = timed(args, None)
        digests.add(found["digest"])
        print(
            f"Run {number + 1}: **{ended - started:.2f} s** from Enter to prompt; peak of the device "
            f"{format_size(int(found['device_bytes']))} (as torch reserves it), of the host "
            f"{format_size(int(found['host_bytes']))} (with pages of libraries and pinned memory); "
            f"{found['calibrated']} of {found['coded']} coded tensors calibrated, mean loss {found['loss']:.3e}.",
            flush=True,
        )
    trace = args.folder / "trace.json"
    started, ended, found = timed(args, trace)
    digests.add(found["digest"])
    print(f"\nWith a trace, {ended - started:.2f} s:\n")
    print("| part | from | to | seconds | sum over threads |\n|---|---|---|---|---|")
    for name, begin, end, covered, total in stages(json.loads(trace.read_text()), started, ended):
        print(f"| {name} | {begin:.2f} | {end:.2f} | {covered:.2f} | {total:.1f} |")
    print(f"\nAll runs wrote the same bytes: {'yes' if len(digests) == 1 else 'NO'}.")
    if len(digests) != 1:
        sys.exit(6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="must not exist; removed at the end")
    parser.add_argument("--config", type=Path, default=ROOT / "tests" / "data" / "gemma4-26b.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, help="keep only this many of the last layers")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--runs", type=int, default=2, help="runs without a trace; one with a trace follows")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(args)
        return
    if args.folder.exists():
        sys.exit(f"{args.folder} already exists")
    config = json.loads(args.config.read_text())
    if args.layers:
        keep_layers(config["text_config"], args.layers)
    device = find_devices(args.device)[0]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    written = write_checkpoint(args.folder / "source", config, device=str(device))
    print(f"{format_size(written)} of random weights, {args.tokens} tokens in pieces of {args.length}, {name}.\n")
    try:
        report(args)
    finally:
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
