"""What was written, piece by piece: records of files, tensors and shards, and their strict reading from JSON."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

from ..io import SourceRows, TensorInfo
from ..plan import CodedTensor, KeptTensor
from .shards import SHARD


@dataclass(frozen=True)
class TensorRecord:
    """A coded tensor as written.

    Attributes:
        name: module path, and the parameter's name for stacked experts.
        role: of its source.
        shape: (out, in), or (experts, out, in).
        bits: width of a code.
        bytes: stored bytes of codes, scales and base.
        blake3: hash of codes, scales and base, in this order.
        nmse: ||W - W'||^2 / ||W||^2, to 5 digits.
        sources: names of its source tensors, in the order of its rows.
        runs: (index of the source, first row, count, step) of the rows, where they are not those of whole sources.
        transposed: whether `runs` count columns of the sources' matrices.
        source_shapes: shapes of the sources, where they do not follow from `shape` and their number.
        loss: of a calibrated tensor: d'Hd / w'Hw, the relative squared error of the outputs, to 5 digits.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    bits: int
    bytes: int
    blake3: str
    nmse: float
    sources: tuple[str, ...]
    runs: tuple[tuple[int, int, int, int], ...] = ()
    transposed: bool = False
    source_shapes: tuple[tuple[int, ...], ...] = ()
    loss: float | None = None

    def parts(self, tensors: Mapping[str, TensorInfo]) -> tuple[SourceRows, ...] | None:
        """Return its rows in a source; None where the source lacks a tensor or has it in another shape."""
        infos = [tensors.get(name) for name in self.sources]
        if None in infos:
            return None
        found = [info for info in infos if info is not None]
        if any(info.shape != shape for info, shape in zip(found, self.shapes_of_sources, strict=True)):
            return None
        if self.runs:
            return tuple(SourceRows(found[i], start, n, step, self.transposed) for i, start, n, step in self.runs)
        return tuple(SourceRows.whole(info) for info in found)

    @property
    def shapes_of_sources(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the source tensors."""
        return self.source_shapes or default_source_shapes(self.shape, len(self.sources))

    @property
    def matrices(self) -> int:
        """How many matrices it holds: its experts, or one."""
        return self.shape[0] if len(self.shape) == 3 else 1


@dataclass(frozen=True)
class KeptRecord:
    """A tensor copied bit for bit."""

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    blake3: str
    reason: str


@dataclass(frozen=True)
class FileRecord:
    """A file of the checkpoint.

    Attributes:
        name: relative to the folder.
        size: in bytes.
        sha256: of the whole file; None of a shard until `hlwq push` states it; its tensors have theirs.
    """

    name: str
    size: int
    sha256: str | None

    @property
    def is_shard(self) -> bool:
        """Whether it is a shard of the checkpoint, and no sidecar file that holds weights of its own."""
        return SHARD.fullmatch(self.name) is not None


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard: a line of the journal."""

    file: FileRecord
    coded: tuple[TensorRecord, ...]
    kept: tuple[KeptRecord, ...]


def default_source_shapes(shape: tuple[int, ...], count: int) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of sources that need no mention: one of the coded shape, or matrices of as many rows each."""
    return (shape,) if count == 1 else ((math.prod(shape[:-1]) // count, shape[-1]),) * count


def coded_record(planned: CodedTensor, blake3: str, nmse: float, loss: float | None = None) -> TensorRecord:
    """The record of a coded tensor."""
    sources, whole = planned.sources, planned.is_concatenation
    runs = () if whole else tuple((sources.index(p.name), p.start, p.count, p.step) for p in planned.parts)
    shape_of = {p.name: p.info.shape for p in planned.parts}
    shapes = tuple(shape_of[name] for name in sources)
    return TensorRecord(
        name=planned.name,
        role=planned.role,
        shape=planned.shape,
        bits=planned.scheme.bits,
        bytes=planned.nbytes,
        blake3=blake3,
        nmse=float(f"{nmse:.4e}"),
        sources=sources,
        runs=runs,
        transposed=not whole and planned.parts[0].is_transposed,
        source_shapes=() if shapes == default_source_shapes(planned.shape, len(sources)) else shapes,
        loss=None if loss is None else float(f"{loss:.4e}"),
    )


def kept_record(planned: KeptTensor, blake3: str) -> KeptRecord:
    """The record of a kept tensor."""
    info = planned.info
    return KeptRecord(info.name, planned.role, info.dtype, info.shape, info.nbytes, blake3, planned.reason)


def tensors_digest(coded: Iterable[TensorRecord], kept: Iterable[KeptRecord]) -> str:
    """Return a hash of what every tensor is and what it is made of: all of the records but hashes and errors."""
    entries: list[list[Any]] = [
        [t.name, t.role, t.shape, t.bits, t.sources, t.runs, t.transposed, t.shapes_of_sources] for t in coded
    ]
    entries += [[t.name, t.role, t.shape, t.dtype, t.reason] for t in kept]
    return hashlib.sha256(json.dumps(sorted(entries, key=itemgetter(0))).encode()).hexdigest()


MAX_FLOAT = sys.float_info.max
"""A JSON number may be larger, and then it cannot be converted. NaN is not less than it either."""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_counts(value: Any) -> bool:
    """Whether a value is a list of lists of counts."""
    return isinstance(value, list) and all(isinstance(part, list) and all(map(_is_count, part)) for part in value)


def _is_file_name(value: Any) -> bool:
    """A path that stays inside the folder."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    return not value.startswith("/") and ".." not in value.split("/")


_FITS: dict[str, Callable[[Any], bool]] = {
    **{k: lambda v: isinstance(v, str) for k in ("name", "role", "dtype", "reason", "sha256", "blake3", "rule")},
    **dict.fromkeys(("bytes", "size", "source_bytes"), _is_count),
    **{k: lambda v: isinstance(v, dict) for k in ("fingerprint", "tool", "calibration")},
    "bits": lambda v: type(v) is int and 2 <= v <= 8,
    **dict.fromkeys(("nmse", "loss"), lambda v: type(v) in (int, float) and 0 <= v <= MAX_FLOAT),
    "shape": lambda v: isinstance(v, list) and all(map(_is_count, v)),
    "sources": lambda v: isinstance(v, list) and len(v) > 0 and all(isinstance(s, str) for s in v),
    "runs": lambda v: _are_counts(v) and all(len(run) == 4 for run in v),
    "transposed": lambda v: isinstance(v, bool),
    "source_shapes": lambda v: _are_counts(v),
    "source": lambda v: isinstance(v, dict) and isinstance(v["id"], str) and isinstance(v["revision"], str | None),
}


RECIPE_FITS: dict[str, Callable[[Any], bool]] = {
    "recipe": lambda v: isinstance(v, str),
    **dict.fromkeys(("tensor", "include", "exclude"), lambda v: _are_texts(v)),
}
"""What a fingerprint may state of a recipe."""
CALIBRATION_FITS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("kind", "origin", "file"), lambda v: isinstance(v, str)),
    "tokens": _is_count,
    "without_moments": lambda v: isinstance(v, dict) and _are_texts(list(v.values())),
}
"""What a manifest may state of a calibration."""


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def check_fields(what: str, document: Any, fits_by_key: Mapping[str, Callable[[Any], bool]] = _FITS) -> None:
    """Raise ValueError where a known field of `document` is not of its kind, or where it has no fields."""
    if not isinstance(document, dict):
        raise ValueError(f"{what} is {document!r:.60}")
    wrong = [key for key, fits in fits_by_key.items() if key in document and not fits(document[key])]
    if wrong:
        raise ValueError(f"{wrong[0]} of {what} is {document[wrong[0]]!r:.60}")


def read_file(document: dict[str, Any]) -> FileRecord:
    """The record of a file, from JSON; its name must stay inside the folder, and only a shard may have no hash."""
    name = str(document["name"])
    check_fields(name, {key: value for key, value in document.items() if (key, value) != ("sha256", None)})
    if not _is_file_name(document["name"]):
        raise ValueError(f"{document['name']!r} is no file inside the folder")
    record = FileRecord(**document)
    if record.sha256 is None and not record.is_shard:
        raise ValueError(f"sha256 of {record.name} is None")
    return record


def read_tensor(document: dict[str, Any]) -> TensorRecord:
    """The record of a coded tensor, from JSON."""
    check_fields(str(document["name"]), document)
    shape, sources = document["shape"], document["sources"]
    runs, shapes = document.get("runs", []), document.get("source_shapes", [])
    if len(shape) not in (2, 3) or not math.prod(shape) or (not runs and math.prod(shape[:-1]) % len(sources)):
        raise ValueError(f"shape of {document['name']} is {shape}")
    if shapes and len(shapes) != len(sources):
        raise ValueError(f"source_shapes of {document['name']} are not one for each source")
    if runs and not _are_runs(runs, shapes or [shape] * len(sources), shape, document.get("transposed", False)):
        raise ValueError(f"runs of {document['name']} do not make {shape} of its sources")
    lists = {"shape": tuple(shape), "sources": tuple(sources), "runs": tuple(map(tuple, runs))}
    return TensorRecord(**{**document, **lists, "source_shapes": tuple(map(tuple, shapes))})


def _are_runs(runs: list[list[int]], shapes: list[list[int]], shape: list[int], transposed: bool) -> bool:
    """Whether runs lie within their sources and have the rows and columns of the coded tensor."""
    across = -2 if transposed else -1
    if any(len(s) < 2 or s[across] != shape[-1] for s in shapes) or sum(r[2] for r in runs) != math.prod(shape[:-1]):
        return False
    return all(
        i < len(shapes) and n > 0 and step > 0 and start + (n - 1) * step < math.prod(shapes[i]) // shape[-1]
        for i, start, n, step in runs
    )


def dump_tensor(record: TensorRecord) -> dict[str, Any]:
    """Return a coded tensor's record for JSON; what says nothing is left out."""
    document = asdict(record)
    silent = [key for key in ("runs", "transposed", "source_shapes") if not document[key]]
    silent += [key for key in ("loss",) if document[key] is None]
    return {key: value for key, value in document.items() if key not in silent}


def read_kept(document: dict[str, Any]) -> KeptRecord:
    """The record of a kept tensor, from JSON."""
    check_fields(str(document["name"]), document)
    return KeptRecord(**{**document, "shape": tuple(document["shape"])})


def dump_shard(record: ShardRecord) -> dict[str, Any]:
    """Return a finished shard's record for JSON."""
    return asdict(record) | {"coded": [dump_tensor(tensor) for tensor in record.coded]}


def read_shard(document: dict[str, Any]) -> ShardRecord:
    """The record of a finished shard, from JSON."""
    return ShardRecord(
        read_file(document["file"]),
        tuple(read_tensor(t) for t in document["coded"]),
        tuple(read_kept(t) for t in document["kept"]),
    )
