"""Where weights come from: a folder or a Hub repository, read by slice."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import CorruptError, NotFoundError, UnsupportedError, UsageError
from ...samples import resolve_model
from .hub_repo import HubRepo, is_repo_id
from .open_files import PREFETCH_FILES, PrefetchedFiles
from .safetensors_file import DTYPES, TensorInfo, read_header, read_into
from .weight_map import INDEX, collect_tensors, read_json, read_weight_map, weight_files

_WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".tflite", ".pkl",
    ".safetensors.index.json", ".bin.index.json",
)  # fmt: skip

_MADE_HERE = ("hlwq_manifest.json", ".hlwq_run.jsonl")
_SAMPLE = 4096


@dataclass
class Source:
    """An unquantized checkpoint.

    Attributes:
        id: as the user named it.
        revision: the commit, for a Hub repository.
        config: its config.json.
        tensors: every tensor, in the order of files and offsets.
        sidecar_files: names of all files that are no weights, relative to the root.
        root: the folder that files are read from.
        repo: the Hub repository that fills `root`, or None.
    """

    id: str
    revision: str | None
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    sidecar_files: tuple[str, ...]
    root: Path
    repo: HubRepo | None = None
    _files: PrefetchedFiles = field(init=False, repr=False)
    _private: Path | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._files = PrefetchedFiles(self._locate, self._drop)

    @property
    def tied(self) -> bool:
        """Whether the config ties the head to the embeddings."""
        text = self.config.get("text_config")
        default = text.get("tie_word_embeddings", False) if isinstance(text, dict) else False
        return bool(self.config.get("tie_word_embeddings", default))

    def largest_files(self, count: int) -> int:
        """Bytes of the largest so many files of weights."""
        sizes: Counter[str] = Counter()
        for info in self.tensors.values():
            sizes[info.file] = max(sizes[info.file], info.offset + info.nbytes)
        return sum(n for _, n in sizes.most_common(count))

    def path(self, file: str) -> Path:
        """The local path of a file that is no weights, fetched first where it must be."""
        return self.root / file if self.repo is None else self.repo.fetch(file)

    def read(self, info: TensorInfo, first_row: int = 0, rows: int | None = None) -> torch.Tensor:
        """Rows of a tensor whose leading dimensions are taken as one: (rows, last dimension), in its dtype."""
        columns = info.shape[-1] if info.shape else 1
        rows = info.rows - first_row if rows is None else rows
        row_bytes = columns * DTYPES[info.dtype].itemsize
        data = self.read_bytes(info, first_row * row_bytes, rows * row_bytes)
        return torch.frombuffer(data, dtype=DTYPES[info.dtype]).view(rows, columns)

    def read_bytes(self, info: TensorInfo, start: int, length: int) -> bytearray:
        """`length` bytes of a tensor's data from `start`."""
        data = bytearray(length)
        self.read_into(info, start, memoryview(data))
        return data

    def read_into(self, info: TensorInfo, start: int, buffer: memoryview) -> None:
        """Fill a buffer with a tensor's data from byte `start`."""
        read_into(self._files.descriptor(info.file), buffer, info.offset + start, info.file)

    def prefetch(self, files: Sequence[str], private: Path | None = None) -> None:
        """Get ready to read files one after the other, each to be let go at the end: those of a Hub repository are
        fetched one ahead.

        Args:
            files: in the order of their use.
            private: a folder to fetch into instead of the cache, from which files are removed when they are let go.
                Whatever else it holds is removed now.
        """
        if self.repo is None:
            return
        self._private = private
        if private is not None and private.is_dir():
            for old in set(os.listdir(private)) - set(files[:PREFETCH_FILES]):
                shutil.rmtree(private / old)
        self._files.prefetch(files)

    def open_file(self, file: str) -> None:
        """Wait until a file can be read."""
        self._files.descriptor(file)

    def release(self, file: str) -> None:
        """Say that a file which `prefetch` was given will not be read again."""
        if self.repo is not None:
            self._files.release(file)

    def stop(self) -> None:
        """Fetch no more files; threads that wait for one are told so by CancelledError."""
        self._files.stop()

    def _locate(self, file: str) -> Path:
        if self.repo is None:
            return self.root / file
        path = self.repo.fetch(file, None if self._private is None else self._private / file)
        header, _ = read_header(path, file)
        planned = {t.name: t for t in self.tensors.values() if t.file == file}
        if header != planned:
            raise CorruptError(f"{file} as fetched differs from its header on the Hub.", "Delete it and run again.")
        return path

    def _drop(self, file: str) -> None:
        if self._private is not None:
            shutil.rmtree(self._private / file)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the source: id and commit, or each file's size, header and both ends of its tensors."""
        if self.repo is not None:
            return {"repo": self.id, "revision": self.revision}
        hashes = {f: hashlib.sha256(_header(self.root / f)) for f in sorted({t.file for t in self.tensors.values()})}
        for info in self.tensors.values():
            n = min(_SAMPLE, info.nbytes)
            hashes[info.file].update(self.read_bytes(info, 0, n) + self.read_bytes(info, info.nbytes - n, n))
        others = {n: hashlib.sha256((self.root / n).read_bytes()) for n in self.sidecar_files}
        return {
            "files": {f: [(self.root / f).stat().st_size, h.hexdigest()[:16]] for f, h in hashes.items()},
            "others": {n: h.hexdigest()[:16] for n, h in others.items()},
        }


def _header(path: Path) -> bytes:
    with path.open("rb") as f:
        length = f.read(8)
        return length + f.read(int.from_bytes(length, "little"))


def open_source(model: str, revision: str | None = None) -> Source:
    """Open a folder or a Hub repository.

    Args:
        model: a path, `owner/name` on the Hub, or `sample`, the bundled model.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        NotFoundError: neither exists.
        CorruptError: its files contradict each other.
        UnsupportedError: it is quantized already, or has no safetensors weights.
    """
    model = resolve_model(model)
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UsageError(f"--revision needs a Hub id, and {model} is a folder.")
        source = _open_folder(model, path)
    elif is_repo_id(model) and not path.exists():
        source = _open_repo(model, revision)
    else:
        raise NotFoundError(f"There is no folder {model}.", "Give a folder with a checkpoint, or a Hub id owner/name.")
    refuse_quantized(source)
    if not source.tensors:
        raise UnsupportedError(f"{model} holds no tensors.", "Give a folder with a checkpoint, or a Hub id owner/name.")
    return source


def _open_folder(model: str, root: Path) -> Source:
    config = read_json(root / "config.json", "config.json")
    index = root / INDEX
    names = sorted(p.name for p in root.glob("*.safetensors"))
    weight_map = read_weight_map(index) if index.exists() else None
    tensors = collect_tensors(
        {f: read_header(root / f, f)[0] for f in weight_files(names, weight_map, model)}, weight_map
    )
    made = {p.parent for p in root.rglob("*") if p.name in _MADE_HERE}
    found = (p for p in root.rglob("*") if p.is_file() and not made & set(p.parents))
    files = sorted(str(p.relative_to(root)) for p in found)
    return Source(model, None, config, tensors, _sidecar_files(files), root)


def _open_repo(model: str, revision: str | None) -> Source:
    repo = HubRepo.find(model, revision)
    config = read_json(repo.fetch("config.json"), "config.json") if "config.json" in repo.files else {}
    names = sorted(f for f in repo.files if f.endswith(".safetensors") and "/" not in f)
    weight_map = read_weight_map(repo.fetch(INDEX)) if INDEX in repo.files else None
    headers = {f: repo.header(f) for f in weight_files(names, weight_map, model)}
    return Source(
        model, repo.commit, config, collect_tensors(headers, weight_map), _sidecar_files(repo.files), repo.root, repo
    )


def _sidecar_files(files: list[str]) -> tuple[str, ...]:
    """Files to bring along: all but weights, hidden ones, caches and the model card, which is written anew."""
    return tuple(
        f
        for f in files
        if not f.endswith(_WEIGHT_SUFFIXES) and not any(part.startswith((".", "__pycache__")) for part in Path(f).parts)
    )


def refuse_quantized(source: Source) -> None:
    """Raise UnsupportedError where weights are coded already."""
    config = source.config.get("quantization_config") or source.config.get("compression_config")
    if config:
        method = str(config.get("quant_method", "unknown") if isinstance(config, dict) else config)
        raise UnsupportedError(
            f"{source.id} is quantized already ({method}).", "Give the unquantized checkpoint it was made from."
        )
    for info in source.tensors.values():
        if info.dtype.startswith(("F8", "F4")) or info.name.endswith(
            (".qweight", ".codes", ".qzeros", ".weight_packed")
        ):
            raise UnsupportedError(
                f"{source.id} holds quantized weights ({info.name} is {info.dtype}).",
                "Give the unquantized checkpoint it was made from.",
            )
