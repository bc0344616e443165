"""Check that the peak memory of `hlwq quantize` does not depend on the model's size: 2 GB and 6 GB checkpoints.

    python scripts/bench/memory.py --folder FOLDER [--sizes 2 6] [--effort fast] [--threads 2]

FOLDER needs 9 GB of free space; everything made there is removed. The checkpoints have gemma4's names and shapes: an
embedding, routers, attention, and per layer one 1 GB tensor and one 0.5 GB tensor of stacked experts, in random bf16.
Peaks come from the kernel (ru_maxrss of a process, including pages of mapped files). The peak of a process that only
imports the same modules is subtracted. Two columns:

- peak: the largest of several runs as users run them. How many of the freed 17 MB buffers glibc keeps is chance, so
  runs differ by 100 MB whatever the model's size.
- in use: a run whose allocator returns large freed buffers at once (MALLOC_MMAP_THRESHOLD_); stable to 1 MB.

Exits with 1 if the peak exceeds 600 MB, or if "in use" grows by 10 % from the smallest to the largest model.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HIDDEN, EXPERTS, INTERMEDIATE, VOCABULARY = 2816, 128, 704, 82_000
LIMIT_MB, LIMIT_GROWTH = 600, 0.10
SHARD_BYTES, CHUNK_BYTES = 2_000_000_000, 2**24
CONFIG = {
    "model_type": "gemma4",
    "architectures": ["Gemma4ForConditionalGeneration"],
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "gemma4_text",
        "hidden_size": HIDDEN,
        "num_experts": EXPERTS,
        "moe_intermediate_size": INTERMEDIATE,
        "enable_moe_block": True,
    },
}
RUN = "import sys; from hlwq_cli.main import app; app(sys.argv[1:], standalone_mode=False)"
LIST_MODULES = RUN + "; print('\\n' + ' '.join(sys.modules))"
IMPORT_MODULES = """
import importlib, sys
for name in sys.argv[1].split():
    try:
        importlib.import_module(name)
    except Exception:  # some libraries create modules at run time
        pass
"""
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
Tensors = dict[str, tuple[int, ...]]


def shards(total: int, experts: int) -> Iterator[Tensors]:
    """Yield names and shapes, one shard at a time, until about `total` bytes are reached."""
    shard: Tensors = {}
    made = held = 0
    for name, shape in tensors(experts):
        size = 2 * int(np.prod(shape))
        if made + size / 2 > total:
            break
        if held + size > SHARD_BYTES:
            yield shard
            shard, held = {}, 0
        shard[name] = shape
        made, held = made + size, held + size
    yield shard


def tensors(experts: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.language_model.embed_tokens.weight", (VOCABULARY * experts // EXPERTS, HIDDEN)
    for layer in range(1000):
        prefix = f"model.language_model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (HIDDEN,)
        yield prefix + "self_attn.q_proj.weight", (4096 * experts // EXPERTS, HIDDEN)
        yield prefix + "router.proj.weight", (experts, HIDDEN)
        yield prefix + "experts.gate_up_proj", (experts, 2 * INTERMEDIATE, HIDDEN)
        yield prefix + "experts.down_proj", (experts, HIDDEN, INTERMEDIATE)


def write_checkpoint(folder: Path, total: int, experts: int = EXPERTS) -> int:
    """Write a checkpoint and return its bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    every = list(shards(total, experts))
    index: dict[str, str] = {}
    for number, shard in enumerate(every, 1):
        file = f"model-{number:05}-of-{len(every):05}.safetensors"
        write_shard(folder / file, shard)
        index |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return sum(p.stat().st_size for p in folder.iterdir())


def write_shard(path: Path, shard: Tensors) -> None:
    """Write a safetensors file (header length, header, data) of random bf16 weights of magnitude 2^-7 to 2."""
    header, end = {}, 0
    for name, shape in shard.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    random = np.random.default_rng(end)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, CHUNK_BYTES):
            bits = random.integers(0, 2**16, min(CHUNK_BYTES, end - start) // 2, np.uint16)
            file.write((bits & np.uint16(0x83FF) | np.uint16(0x3C00)).data)  # exponents 120 to 127


@dataclass(frozen=True)
class Peak:
    """The peak memory of a process, in MB, and its seconds."""

    megabytes: float
    seconds: float


def peak(code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Peak:
    """Run Python code and return its peak memory. wait4 reports this child alone, unlike RUSAGE_CHILDREN."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments[:3])} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return Peak(usage.ru_maxrss * unit / 1e6, time.perf_counter() - start)


def quantize(source: Path, options: list[str], environment: Mapping[str, str] | None = None) -> Peak:
    out = source.with_name(source.name + "-out")
    try:
        return peak(RUN, "quantize", str(source), str(out), "--quiet", *options, environment=environment)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def imported_modules(folder: Path) -> str:
    """Return the names of all modules that a run has imported at its end. The run also fills numba's cache."""
    source, out = folder / "tiny", folder / "tiny-out"
    write_checkpoint(source, 10**7, experts=1)
    arguments = [sys.executable, "-c", LIST_MODULES, "quantize", str(source), str(out), "--quiet"]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sizes", type=float, nargs="+", default=[2, 6], help="GB")
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    if shutil.disk_usage(args.folder).free < 1.5e9 * max(args.sizes):
        raise SystemExit(f"{args.folder} needs {1.5 * max(args.sizes):.0f} GB of free disk space")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        sys.exit(0 if report(Path(name), args) else 1)


def report(folder: Path, args: argparse.Namespace) -> bool:
    """Print the table; return whether the limits hold."""
    imports = peak(IMPORT_MODULES, imported_modules(folder)).megabytes
    options = ["--effort", args.effort, "--threads", args.threads]
    print(f"MB above the imports ({imports:.0f} MB); {' '.join(options)}; peak of {args.runs} runs\n")
    print("| checkpoint | seconds | peak | in use |\n|---|---|---|---|")
    peaks, used = [], []
    for size in args.sizes:
        source = folder / f"{size:g}GB"
        written = write_checkpoint(source, int(size * 1e9))
        runs = [quantize(source, options) for _ in range(args.runs)]
        used.append(quantize(source, options, RETURN_FREED).megabytes - imports)
        shutil.rmtree(source)
        peaks.append(max(r.megabytes for r in runs) - imports)
        seconds = min(r.seconds for r in runs)
        print(f"| {written / 1e9:.2f} GB | {seconds:.0f} | {peaks[-1]:.0f} | {used[-1]:.0f} |", flush=True)
    return max(peaks) <= LIMIT_MB and used[-1] <= used[0] * (1 + LIMIT_GROWTH)


if __name__ == "__main__":
    main()
