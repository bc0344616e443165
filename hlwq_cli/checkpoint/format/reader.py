"""Open a coded checkpoint, check that its files agree with each other, and read its tensors by slice."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ...codec import BLOCK_SIZES, MAX_BITS, MIN_BITS, Coded, Scheme, decode, part_name, unpack_codes
from ...errors import CorruptError, HlwqError, NotFoundError, UnsupportedError, UsageError
from ...samples import resolve_model
from ..io import (
    DTYPE_NAMES,
    DTYPES,
    INDEX,
    MAX_ROW_WEIGHTS,
    HubRepo,
    PrefetchedFiles,
    TensorInfo,
    check_config,
    collect_tensors,
    is_repo_id,
    read_header,
    read_into,
    read_json,
    read_weight_map,
)
from .manifest import MANIFEST, Manifest, read_manifest
from .manifest_entries import FileRecord, TensorRecord
from .shards import FORMAT_VERSION
from .unlisted import check_listed, files_below

_MAX_CENTROID = float(torch.finfo(torch.float32).max)
Identity = tuple[int, int, int] | None


def _identity(path: Path) -> Identity:
    """Return what changes when a file is replaced or written to; None if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass
class CodedCheckpoint:
    """An open coded checkpoint.

    Attributes:
        folder: the local folder.
        config: contents of config.json.
        manifest: contents of hlwq_manifest.json.
        tensors: all tensors of the shards, by stored name.
        codebooks: float32 centroids by width, from config.json.
        repo: the Hub repository that files are fetched from on demand, or None.
        opened: what manifest and shards of a local folder were when they were opened, by name.
    """

    folder: Path
    config: dict[str, Any]
    manifest: Manifest
    tensors: dict[str, TensorInfo]
    codebooks: dict[int, torch.Tensor]
    repo: HubRepo | None = None
    opened: dict[str, Identity] = field(default_factory=dict, repr=False)
    _files: PrefetchedFiles = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._files = PrefetchedFiles(self.path, lambda _: None)

    def path(self, file: str) -> Path:
        """Return the local path of a file. The file is fetched first if it is not there."""
        return self.folder / file if self.repo is None else self.repo.fetch(file)

    @property
    def settings(self) -> dict[str, Any]:
        """The quantization_config of config.json."""
        settings: dict[str, Any] = self.config["quantization_config"]
        return settings

    def scheme(self, record: TensorRecord) -> Scheme:
        """Return how a tensor is coded. `search` is always False: it does not matter to a decoder."""
        return Scheme(record.bits, self.settings["block_size"], self.settings["scale"], False)

    def stored(self, record: TensorRecord) -> list[TensorInfo]:
        """Return the stored tensors of a coded one: codes, scales and, with `log8`, base.

        Raises:
            CorruptError: one is missing.
        """
        names = [part_name(record.name, part, len(record.shape)) for part in self.scheme(record).parts]
        missing = sorted(set(names) - set(self.tensors))
        if missing:
            raise CorruptError(f"{self.folder} lacks {', '.join(missing)}.", "Fetch the checkpoint again.")
        return [self.tensors[n] for n in names]

    def decode_rows(self, record: TensorRecord, first_row: int, rows: int) -> torch.Tensor:
        """Return decoded rows, float32 (rows, in); the leading dimensions of the tensor count as one."""
        parts = [self._rows(info, first_row, rows, math.prod(record.shape[:-1])) for info in self.stored(record)]
        base = parts[2].reshape(rows) if len(parts) == 3 else None
        coded = Coded(parts[0], parts[1], base, (rows, record.shape[-1]), self.scheme(record))
        return decode(coded, self.codebooks[record.bits])

    def read_codes(self, record: TensorRecord, first_row: int, rows: int) -> torch.Tensor:
        """Return unpacked codes, uint8 (rows, padded in); the leading dimensions of the tensor count as one."""
        packed = self._rows(self.stored(record)[0], first_row, rows, math.prod(record.shape[:-1]))
        return unpack_codes(packed, record.bits)

    def _rows(self, info: TensorInfo, first_row: int, rows: int, of: int) -> torch.Tensor:
        row_bytes = info.nbytes // of
        data = self.read_bytes(info, first_row * row_bytes, rows * row_bytes)
        return torch.frombuffer(data, dtype=DTYPES[info.dtype]).view(rows, -1)

    def read_bytes(self, info: TensorInfo, start: int, length: int) -> bytearray:
        """Return `length` bytes of a stored tensor's data from byte `start`."""
        data = bytearray(length)
        self.read_into(info, start, memoryview(data))
        return data

    def read_into(self, info: TensorInfo, start: int, buffer: memoryview) -> None:
        """Fill a buffer with a stored tensor's data from byte `start`."""
        read_into(self._files.descriptor(info.file), buffer, info.offset + start, info.file)

    def check_unchanged(self) -> None:
        """Raise CorruptError if manifest or shards of a local folder were replaced since they were opened."""
        changed = [name for name, before in self.opened.items() if _identity(self.folder / name) != before]
        if changed == [MANIFEST] and self._has_same_tensors():
            return  # its card was made again
        if changed:
            raise CorruptError(
                f"{self.folder} was replaced while it was read ({changed[0]}).", "Run the same command again."
            )

    def _has_same_tensors(self) -> bool:
        try:
            return read_manifest(self.folder).digest == self.manifest.digest
        except HlwqError:  # it is gone, as a new run began
            return False

    def close(self) -> None:
        """Close the files."""
        self._files.close()


def open_coded(path: str | os.PathLike[str], revision: str | None = None) -> CodedCheckpoint:
    """Open an HLWQ folder or Hub repository; config, index, headers and manifest must agree.

    From a repository only the small files and the headers of the shards are fetched.

    Raises:
        NotFoundError: it is not an HLWQ checkpoint, or an unfinished one.
        UnsupportedError: its format is newer than this library.
        CorruptError: two of its files contradict each other; the message names the tensor.
        GateMissedError: it holds a file that its manifest does not list and that a loader would read.
    """
    path = resolve_model(str(path))
    folder, repo = Path(path), None
    if not os.path.lexists(folder) and is_repo_id(str(path)):
        repo = HubRepo.find(str(path), revision)
        folder = repo.root
        for file in ("config.json", MANIFEST, INDEX):
            if file in repo.files:
                repo.fetch(file)
    elif revision is not None:
        raise UsageError(f"--revision needs a Hub id, and {path} is a folder.", "Leave it out.")
    elif not os.path.isdir(folder):
        raise NotFoundError(f"There is no folder {path}.", "Give an HLWQ checkpoint's folder, or a Hub id owner/name.")
    opened = {MANIFEST: _identity(folder / MANIFEST)}
    manifest = read_manifest(folder, str(path))
    check_listed(repo.files if repo else files_below(folder), manifest, str(path))
    config = read_json(folder / "config.json", "config.json")
    check_config(config, str(path))
    settings = _check_settings(config, folder)
    index = folder / INDEX
    weight_map = read_weight_map(index) if index.exists() else None
    shards = [f for f in manifest.files if f.is_shard]
    opened |= {f.name: _identity(folder / f.name) for f in shards}
    headers = {f.name: repo.header(f.name) if repo else _header(folder, f) for f in shards}
    tensors = collect_tensors(headers, weight_map)
    codebooks = {int(b): torch.tensor(c, dtype=torch.float32) for b, c in settings["codebooks"].items()}
    checkpoint = CodedCheckpoint(folder, config, manifest, tensors, codebooks, repo, {} if repo else opened)
    _check_tensors(checkpoint)
    return checkpoint


def _header(folder: Path, record: FileRecord) -> dict[str, TensorInfo]:
    path = folder / record.name
    if record.name != os.path.basename(record.name) or not path.is_file():
        raise CorruptError(f"{folder} lacks {record.name}.", "Fetch it again.")
    if path.stat().st_size != record.size:
        raise CorruptError(
            f"{record.name} does not have the size in the manifest; it was cut short or changed.", "Fetch it again."
        )
    return read_header(path, record.name)[0]


def _check_settings(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    settings = config.get("quantization_config")
    if not isinstance(settings, dict) or settings.get("quant_method") != "hlwq":
        raise CorruptError(f"config.json in {folder} does not say quant_method hlwq.", "Fetch the checkpoint again.")
    if settings.get("format_version") != FORMAT_VERSION:
        raise UnsupportedError(
            f"{folder} has format version {settings.get('format_version')}, not {FORMAT_VERSION}.", "Update hlwq."
        )
    if settings.get("block_size") not in BLOCK_SIZES or settings.get("scale") not in ("log8", "fp16"):
        raise CorruptError(
            f"config.json in {folder} has an unknown block size or scale.", "Fetch the checkpoint again."
        )
    codebooks = settings.get("codebooks")
    if not isinstance(codebooks, dict) or not set(codebooks) <= {str(b) for b in range(MIN_BITS, MAX_BITS + 1)}:
        raise CorruptError("config.json has no codebooks by width.", "Fetch it again.")
    for bits, centroids in codebooks.items():
        if not _is_codebook(centroids, 2 ** int(bits)):
            raise CorruptError(
                f"The {bits}-bit codebook in config.json is not {2 ** int(bits)} ascending numbers.", "Fetch it again."
            )
    return settings


def _is_codebook(centroids: Any, length: int) -> bool:
    if not isinstance(centroids, list) or len(centroids) != length:
        return False
    if any(type(c) not in (int, float) or not abs(c) <= _MAX_CENTROID for c in centroids):
        return False
    return all(a < b for a, b in pairwise(centroids))


def _check_tensors(checkpoint: CodedCheckpoint) -> None:
    expected: set[str] = {k.name for k in checkpoint.manifest.kept}
    for kept in checkpoint.manifest.kept:
        found = checkpoint.tensors.get(kept.name)
        if found is not None and (found.dtype, found.shape, found.nbytes) != (kept.dtype, kept.shape, kept.bytes):
            raise CorruptError(
                f"{kept.name} is {list(found.shape)} {found.dtype}, not {list(kept.shape)} {kept.dtype}.",
                "Fetch the checkpoint again.",
            )
    for record in checkpoint.manifest.coded:
        if record.shape[-1] > MAX_ROW_WEIGHTS:
            raise CorruptError(
                f"{record.name} has rows of {record.shape[-1]:,} weights, more than {MAX_ROW_WEIGHTS:,}.",
                "Fetch the checkpoint again.",
            )
        if record.bits not in checkpoint.codebooks:
            raise CorruptError(
                f"{record.name} has {record.bits} bits, for which config.json has no codebook.", "Fetch it again."
            )
        parts = checkpoint.scheme(record).layout(record.shape).values()
        for info, (shape, torch_dtype) in zip(checkpoint.stored(record), parts, strict=True):
            dtype = DTYPE_NAMES[torch_dtype]
            if info.shape != shape or info.dtype != dtype:
                raise CorruptError(
                    f"{info.name} is {list(info.shape)} {info.dtype}, not {list(shape)} {dtype}.",
                    "Fetch the checkpoint again.",
                )
            expected.add(info.name)
        if sum(info.nbytes for info in checkpoint.stored(record)) != record.bytes:
            raise CorruptError(
                f"{record.name} does not have the number of bytes in the manifest.", "Fetch the checkpoint again."
            )
    odd = sorted(expected ^ set(checkpoint.tensors))
    if odd:
        raise CorruptError(
            f"Manifest and shards disagree about {', '.join(odd[:5])} ({len(odd)} tensors).", "Fetch it again."
        )
