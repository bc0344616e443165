"""Where weights come from: a folder or a Hub repository, read by slice."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import CorruptError, NotFoundError, UnsupportedError, UsageError
from ...samples import resolve_model
from .hub_repo import HubRepo, is_repo_id
from .open_files import PREFETCH_FILES, PrefetchedFiles
from .safetensors_file import DTYPES, TensorInfo, read_header, read_into
from .weight_files import MODULES, WEIGHT_SUFFIXES, find_weight_files, module_folders, sort_other_weights
from .weight_map import collect_tensors, read_json

_MADE_HERE = ("hlwq_manifest.json", ".hlwq_run.jsonl")
_SAMPLE = 4096
_TIED_NAMES = re.compile(
    r"(^|\.)(lm_head|lm_head\.decoder|predictions\.decoder|decoder|embed_out|output_projection|proj_out"
    r"|embed_tokens|shared|wte|word_embeddings)\.(weight|bias)$"
)
"""Heads and embeddings, which are what transformers ties by `tie_word_embeddings`."""


@dataclass
class Source:
    """An unquantized checkpoint.

    Attributes:
        id: as the user named it.
        revision: the commit, for a Hub repository.
        config: its config.json.
        tensors: every tensor, in the order of files and offsets.
        sidecar_files: names of all files to copy, relative to the root: those that are no weights, and small modules
            that transformers does not load with the model.
        root: the folder that files are read from.
        repo: the Hub repository that fills `root`, or None.
        sidecar_bytes: bytes of the weights among the sidecar files.
        warnings: sentences about files of weights that are neither read nor copied.
    """

    id: str
    revision: str | None
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    sidecar_files: tuple[str, ...]
    root: Path
    repo: HubRepo | None = None
    sidecar_bytes: int = 0
    warnings: tuple[str, ...] = ()
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
        """The local path of a sidecar file, fetched first where it must be."""
        if self.repo is None:
            return self.root / file
        return self.repo.fetch(file, self._private_folder(file) if file.endswith(WEIGHT_SUFFIXES) else None)

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
            kept = {folder.name for f in files[:PREFETCH_FILES] if (folder := self._private_folder(f)) is not None}
            for old in set(os.listdir(private)) - kept:
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
        path = self.repo.fetch(file, self._private_folder(file))
        header, _ = read_header(path, file)
        planned = {t.name: t for t in self.tensors.values() if t.file == file}
        if header != planned:
            raise CorruptError(f"{file} as fetched differs from its header on the Hub.", "Delete it and run again.")
        return path

    def _private_folder(self, file: str) -> Path | None:
        """The folder that a file is fetched into instead of the cache: one for each file."""
        return None if self._private is None else self._private / file.replace("/", "--")

    def _drop(self, file: str) -> None:
        if (folder := self._private_folder(file)) is not None:
            shutil.rmtree(folder)

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
        return {
            "files": {f: [(self.root / f).stat().st_size, h.hexdigest()[:16]] for f, h in hashes.items()},
            "others": {n: _sha256(self.root / n)[:16] for n in self.sidecar_files},
        }


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


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
    made = {p.parent for p in root.rglob("*") if p.name in _MADE_HERE} - {root}
    found = (p for p in root.rglob("*") if p.is_file() and not made & set(p.parents))
    sizes = {str(p.relative_to(root)): p.stat().st_size for p in sorted(found)}

    def header(file: str) -> dict[str, TensorInfo]:
        return read_header(root / file, file)[0]

    return _assemble(Source(model, None, config, {}, (), root), sizes, header)


def _open_repo(model: str, revision: str | None) -> Source:
    repo = HubRepo.find(model, revision)
    config = read_json(repo.fetch("config.json"), "config.json") if "config.json" in repo.files else {}
    return _assemble(Source(model, repo.commit, config, {}, (), repo.root, repo), repo.sizes, repo.header)


def _assemble(source: Source, sizes: Mapping[str, int], header: Callable[[str], dict[str, TensorInfo]]) -> Source:
    """Fill in a source's tensors and sidecar files.

    Args:
        source: without them.
        sizes: bytes of all its files, by name.
        header: reads the tensors of a safetensors file.
    """

    def read(file: str) -> dict[str, Any]:
        return read_json(source.path(file), file)

    files = find_weight_files(source.id, sizes, source.config, read)
    headers = {f: header(f) for f in files.names}
    source.tensors = collect_tensors(headers, files.weight_map, files.extra, lambda n: _may_be_tied(source.config, n))
    modules = _module_folders(source.path(MODULES)) if MODULES in sizes else set()
    loaded_bytes = sum(t.nbytes for t in source.tensors.values())
    others = sort_other_weights(sizes, files.names, loaded_bytes, modules)
    copied = set(others.copied)
    source.sidecar_files = tuple(
        n for n in sizes if n in copied or (not n.endswith(WEIGHT_SUFFIXES) and not _is_hidden(n))
    )
    source.sidecar_bytes = sum(sizes[n] for n in copied)
    source.warnings = others.warnings
    return source


def _module_folders(path: Path) -> set[str]:
    try:
        return module_folders(json.loads(path.read_text()))
    except (ValueError, RecursionError):  # transformers does not read it, so it need not be valid
        return set()


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in Path(name).parts)


def _may_be_tied(config: Mapping[str, Any], name: str) -> bool:
    """Whether a tensor that the index lists and no file holds is filled by the weight that it is tied to."""
    return _TIED_NAMES.search(name) is not None and _ties_weights(config)


def _ties_weights(config: Mapping[str, Any]) -> bool:
    """Whether a config ties the head to the embeddings; if it does not say so, its class in transformers decides."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if "tie_word_embeddings" in part:
            return bool(part["tie_word_embeddings"])
    from transformers import AutoConfig

    try:
        settings = AutoConfig.for_model(**config)
        return bool(settings.get_text_config().tie_word_embeddings)
    except Exception:  # an unknown type, or a config that its class does not accept
        return False


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
