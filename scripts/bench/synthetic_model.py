"""Write a checkpoint with the names, shapes and dtypes of a real model and random weights, quickly.

    python scripts/bench/synthetic_model.py FOLDER [--config tests/data/gemma4-26b.json] [--seed 0] [--device auto]

Names and shapes are those that transformers gives the configuration's class and writes to disk. Each matrix has its own
scale. Three rows in four are Gaussian; one is heavy-tailed (a Gaussian of log-normal variance). Norms are near 1 and
embeddings are small, so that the model computes finite logits. Random weights show speed and correctness of the
pipeline only; they say nothing about quality. The same seed gives the same bytes on the same kind of device.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hlwq_cli.checkpoint.io import build_header
from hlwq_cli.samples import resolve_model
from hlwq_cli.sizes import format_size, parse_size

ROOT = Path(__file__).parents[2]
CHUNK_WEIGHTS = 2**24
SIDECAR_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
SPREAD = 0.5  # standard deviation of the log of a heavy-tailed row's scale
Shapes = dict[str, tuple[int, ...]]


def shapes(config: dict[str, Any]) -> Shapes:
    """Return names and shapes on disk, without allocating weights."""
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    settings = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(settings)
    stored = revert_weight_conversion(model, model.state_dict())
    tied = settings.get_text_config().tie_word_embeddings
    return {n: tuple(t.shape) for n, t in stored.items() if not (tied and n == "lm_head.weight")}


@dataclass(frozen=True)
class Chunk:
    """Rows of one tensor, with the file and offset that they are written to."""

    name: str
    shape: tuple[int, ...]
    first: int
    rows: int
    file: int
    offset: int

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def bytes(self) -> int:
        return 2 * self.rows * self.columns


def seed_of(seed: int, *what: object) -> int:
    return int.from_bytes(hashlib.sha256(repr((seed, *what)).encode()).digest()[:7], "little")


def random_rows(chunk: Chunk, seed: int, device: torch.device) -> torch.Tensor:
    """Return the weights of a chunk, bfloat16 (rows, columns)."""
    generator = torch.Generator(device).manual_seed(seed_of(seed, chunk.name, chunk.first))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    z = normal(chunk.rows, chunk.columns)
    if len(chunk.shape) < 2:
        values = 0.02 * z if chunk.name.endswith("bias") else 1 + 0.05 * z
    elif "embed_tokens" in chunk.name or "position" in chunk.name:
        values = z * min(0.02, chunk.columns**-0.5)
    else:
        z[3::4] *= torch.exp(SPREAD * normal(*z[3::4].shape) - SPREAD**2)
        values = z * (scales(chunk, seed, device) * torch.exp(0.2 * normal(chunk.rows)))[:, None]
    return values.bfloat16()


def scales(chunk: Chunk, seed: int, device: torch.device) -> torch.Tensor:
    """Return the standard deviation of each row's matrix: about 1 / sqrt(inputs), log-normal over matrices."""
    matrices = math.prod(chunk.shape[:-2])
    generator = torch.Generator().manual_seed(seed_of(seed, chunk.name))
    each = torch.exp(0.3 * torch.randn(matrices, generator=generator)) * chunk.columns**-0.5
    row = torch.arange(chunk.first, chunk.first + chunk.rows)
    return each[row // chunk.shape[-2]].to(device)


def split(expected_shapes: Shapes, shard_bytes: int) -> list[Shapes]:
    """Distribute tensors over files, in order, as transformers' save_pretrained does."""
    files: list[Shapes] = [{}]
    held = 0
    for name, shape in expected_shapes.items():
        size = 2 * math.prod(shape)
        if files[-1] and held + size > shard_bytes:
            files.append({})
            held = 0
        files[-1][name] = shape
        held += size
    return files


def chunks(file: int, tensors: Shapes, header: int) -> Iterator[Chunk]:
    offset = header
    for name, shape in tensors.items():
        columns = shape[-1] if shape else 1
        rows = math.prod(shape[:-1])
        step = max(1, CHUNK_WEIGHTS // max(columns, 1))
        for first in range(0, rows, step):
            chunk = Chunk(name, shape, first, min(step, rows - first), file, offset)
            yield chunk
            offset += chunk.bytes


class Writer(threading.local):
    """The state of one thread: on a GPU, a stream and pinned memory."""

    def __init__(self, device: torch.device, seed: int, room: int) -> None:
        self.device, self.seed = device, seed
        gpu = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if gpu else None
        self.pinned = torch.empty(room // 2, dtype=torch.bfloat16, pin_memory=True) if gpu else None

    def write(self, chunk: Chunk, descriptor: int) -> None:
        with torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
            values = random_rows(chunk, self.seed, self.device).flatten()
            if self.pinned is not None:
                values = self.pinned[: values.numel()].copy_(values)
        view = values.view(torch.uint8).numpy().data
        offset = chunk.offset
        while view:
            n = os.pwrite(descriptor, view, offset)
            view, offset = view[n:], offset + n


def write_weights(
    folder: Path, expected_shapes: Shapes, seed: int, device: torch.device, threads: int, shard: int
) -> None:
    """Write safetensors files and their index."""
    files = split(expected_shapes, shard)
    one = len(files) == 1
    names = [
        "model.safetensors" if one else f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]
    work: list[Chunk] = []
    descriptors = []
    for number, (name, tensors) in enumerate(zip(names, files, strict=True)):
        header = build_header([(n, torch.bfloat16, s) for n, s in tensors.items()], {"format": "pt"})
        descriptors.append(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644))
        os.pwrite(descriptors[-1], header, 0)
        os.ftruncate(descriptors[-1], len(header) + sum(2 * math.prod(s) for s in tensors.values()))
        work += chunks(number, tensors, len(header))
    writer = Writer(device, seed, max(c.bytes for c in work))
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(lambda c: writer.write(c, descriptors[c.file]), work))
    for descriptor in descriptors:
        os.close(descriptor)
    if not one:
        weight_map = {t: name for name, tensors in zip(names, files, strict=True) for t in tensors}
        total = sum(2 * math.prod(s) for s in expected_shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_checkpoint(
    folder: Path, config: dict[str, Any], seed: int = 0, device: str = "auto", threads: int = 0, shard: int = 5 * 10**10
) -> int:
    """Write a checkpoint of random weights with the bundled sample's tokenizer; return the bytes of its weights."""
    target_device = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    )
    expected_shapes = shapes(config)
    folder.mkdir(parents=True)
    write_weights(folder, expected_shapes, seed, target_device, threads or os.cpu_count() or 1, shard)
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}, indent=2))
    ids = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in config}
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2))
    for name in SIDECAR_FILES:
        if (source := Path(resolve_model("sample")) / name).is_file():
            shutil.copy(source, folder)
    return sum(2 * math.prod(s) for s in expected_shapes.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, default=ROOT / "tests" / "data" / "gemma4-26b.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="default: one per CPU")
    parser.add_argument("--max-shard-size", default="50GB", help="default: as transformers 5 splits")
    args = parser.parse_args()
    if args.folder.exists():
        sys.exit(f"{args.folder} already exists")
    start = time.perf_counter()
    config = json.loads(args.config.read_text())
    written = write_checkpoint(
        args.folder, config, args.seed, args.device, args.threads, parse_size(args.max_shard_size)
    )
    seconds = time.perf_counter() - start
    print(f"{args.folder}: {format_size(written)} of random weights in {seconds:.1f} s, seed {args.seed}")


if __name__ == "__main__":
    main()
