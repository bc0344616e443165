"""Safetensors files as headers and byte ranges: read headers strictly, read data into buffers, build headers.

Data is read with `preadv` into the caller's buffer instead of a mapping. A truncated file is then an error, not a
SIGBUS, and resident memory is no larger than the buffer.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import CorruptError
from ...printable import CONTROL
from .local_files import open_regular, read_errors

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "C64": torch.complex64,
    "BOOL": torch.bool,
}
DTYPE_BITS = {
    **{name: 8 * dtype.itemsize for name, dtype in DTYPES.items()},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4},
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 25_000_000
"""The longest header in bytes. 400,000 entries fit; reading them takes 500 MB of memory."""
_MAX_TENSORS = 400_000
_MAX_DIMENSIONS = 64
"""Of a tensor, as torch has it."""
_MAX_SIZE = 2**63 - 1
_HALF = re.compile(r"[\ud800-\udfff]")
"""Half of a pair of code units: Python's JSON reads it, the safetensors library does not."""


@dataclass(frozen=True)
class TensorInfo:
    """The location of a tensor in a file.

    Attributes:
        name: name of the tensor.
        dtype: the safetensors name of its type, such as BF16.
        shape: its dimensions.
        file: name of the file that holds it.
        offset: its first byte, counted from the start of the file.
        nbytes: its number of bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int

    @property
    def rows(self) -> int:
        """Product of all dimensions but the last."""
        return math.prod(self.shape[:-1])


def read_header(path: Path, file: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read and check the header of a file.

    Args:
        path: the file.
        file: its name for messages and `TensorInfo.file`.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        CorruptError: the file is not a safetensors file, is cut short, or its header contradicts itself.
    """
    with os.fdopen(open_regular(path, file), "rb") as f, read_errors(path, file):
        size = os.fstat(f.fileno()).st_size
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise CorruptError(f"{file} is cut short or is not a safetensors file.", "Fetch it again.")
        raw = f.read(length)
    return parse_header(raw, file, size)


def parse_header(raw: bytes, file: str, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Parse and check the JSON header of a file of `size` bytes; see `read_header`."""
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_ObjectReader())
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"The header of {file} is not valid: {error}.", "Fetch it again.") from error
    if not isinstance(header, dict):
        raise CorruptError(f"The header of {file} is not an object.", "Fetch it again.")
    odd = next((name for name in header if CONTROL.search(name)), None)
    if odd is not None:
        raise CorruptError(f"The header of {file} has the name {odd!r}, with control characters.", "Fetch it again.")
    if b"\\ud" in raw.lower() and _HALF.search(json.dumps(header, ensure_ascii=False)):
        raise CorruptError(f"The header of {file} has half a character.", "Fetch it again.")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptError(f"The metadata of {file} are not texts by name.", "Fetch it again.")
    start = 8 + len(raw)
    tensors = {name: _tensor_info(name, entry, file, start) for name, entry in header.items()}
    _check_layout(tensors, file, start, size)
    return tensors, metadata


class _ObjectReader:
    """Makes dicts of the objects in a header. It refuses duplicate names, and more objects than a header may have."""

    def __init__(self) -> None:
        self._objects = 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self._objects += 1
        if self._objects > _MAX_TENSORS:
            raise ValueError(f"it has more than {_MAX_TENSORS:,} entries")
        result = dict(pairs)
        if len(result) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            raise ValueError(f"{next(name for name, count in counts.items() if count > 1)!r} is listed twice")
        return result


def _tensor_info(name: str, entry: Any, file: str, start: int) -> TensorInfo:
    try:
        dtype, shape = str(entry["dtype"]), tuple(_whole(n) for n in entry["shape"])
        begin, end = (_whole(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"The header of {file} has an invalid entry for {name}.", "Fetch it again.") from error
    if dtype not in DTYPE_BITS:
        raise CorruptError(f"{name} in {file} has the unknown type {dtype}.", "Fetch it again.")
    if len(shape) > _MAX_DIMENSIONS or max(shape, default=0) > _MAX_SIZE:
        raise CorruptError(f"{name} in {file} has a shape that no tensor can have.", "Fetch it again.")
    if min((*shape, begin, end - begin)) < 0 or (end - begin) * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
        raise CorruptError(
            f"{name} in {file} has {end - begin} bytes, which does not fit its type {dtype} and shape {list(shape)}.",
            "Fetch it again.",
        )
    return TensorInfo(name, dtype, shape, file, start + begin, end - begin)


def _whole(n: Any) -> int:
    if type(n) is not int:
        raise TypeError(f"{n!r} is not a whole number")
    return n


def _check_layout(tensors: Mapping[str, TensorInfo], file: str, start: int, size: int) -> None:
    """Check that the tensors fill the data without gaps or overlaps, and that the file ends where they end."""
    at = start
    for info in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if info.offset != at:
            raise CorruptError(f"{info.name} in {file} overlaps another tensor or leaves a hole.", "Fetch it again.")
        at += info.nbytes
    if at != size:
        raise CorruptError(f"{file} has {size} bytes, but its header says {at}.", "Fetch it again.")


def read_into(fd: int, buffer: memoryview, offset: int, file: str) -> None:
    """Fill `buffer` from byte `offset` of an open file.

    Raises:
        CorruptError: the file ends before.
    """
    while buffer:
        n = os.preadv(fd, [buffer], offset)
        if n == 0:
            raise CorruptError(f"{file} ends before byte {offset}; it was cut short.", "Fetch it again.")
        buffer, offset = buffer[n:], offset + n


def build_header(tensors: list[tuple[str, torch.dtype, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """Return the first bytes of a file that holds these tensors in this order: length, JSON, padding to 8 bytes.

    Args:
        tensors: (name, dtype, shape) of each.
        metadata: the file's metadata.
    """
    entries: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, dtype, shape in tensors:
        end = at + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
