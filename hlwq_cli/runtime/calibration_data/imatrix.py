"""Reading importance matrices of llama.cpp: sums of the squared inputs of each weight.

Both forms are read: GGUF, and the older .dat. They are written by `llama-imatrix` of
https://github.com/ggml-org/llama.cpp (tools/imatrix).

A GGUF imatrix has `general.type` = `imatrix`, and for each weight NAME float32 `NAME.in_sum2` (matrices, inputs) and
`NAME.counts` (matrices, 1): sums over tokens, and the number of tokens; a weight of experts has one matrix for each.

A .dat is, in little-endian int32 and float32: the number of weights; for each its name (length, bytes), the number of
chunks, the number of values, and the values, which are means over tokens times the number of chunks; then the number of
chunks of the file and the name of its text.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ...errors import CorruptError, HlwqError, NonFiniteError, NotFoundError, UsageError

CHUNK_TOKENS = 512
"""Tokens of a chunk, which a .dat does not state: the default of llama-imatrix."""
_HINT = "Give a file of llama-imatrix: imatrix.gguf, or the older imatrix.dat."
_MAX_NAME = 4096


@dataclass(frozen=True)
class Entry:
    """What an imatrix knows of one weight.

    Attributes:
        sums: float32 (matrices * inputs,), sums of squared inputs over tokens; a weight of experts has a matrix for
            each, and a .dat does not say how many.
        counts: float64 (matrices,) or (1,), the tokens summed.
    """

    sums: torch.Tensor
    counts: torch.Tensor


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix.

    Attributes:
        name: of its file.
        sha256: of its file.
        entries: by the name of the weight in GGUF, such as `blk.0.attn_q.weight`.
        tokens: the most tokens that a weight has seen.
    """

    name: str
    sha256: str
    entries: dict[str, Entry]

    @property
    def tokens(self) -> int:
        """The most tokens that one matrix has seen."""
        return int(max(float(entry.counts.max()) for entry in self.entries.values()))


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix of either form.

    Raises:
        NotFoundError: there is no such file.
        UsageError: the file is not an imatrix.
        CorruptError: the file is cut short, or its tensors do not fit together.
        NonFiniteError: a sum is infinite, NaN or negative.
        HlwqError: the package `gguf` is missing.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.", _HINT)
    content = path.read_bytes()
    entries = _read_gguf(path) if content[:4] == b"GGUF" else _read_dat(path)
    for name, entry in entries.items():
        if not (bool((entry.sums >= 0).all()) and bool(entry.sums.isfinite().all())):
            raise NonFiniteError(f"The sums of {name} in {path} are not finite.", "Compute the imatrix again.")
    return Imatrix(path.name, hashlib.sha256(content).hexdigest(), entries)


def _read_gguf(path: Path) -> dict[str, Entry]:
    if find_spec("gguf") is None:
        raise HlwqError("Reading an imatrix needs the package gguf.", "Run `pip install 'hlwq[imatrix]'`.")
    from gguf import GGUFReader

    try:
        reader: Any = GGUFReader(path)
        kind = reader.fields.get("general.type")
        kind = None if kind is None else kind.contents()
        tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    except Exception as error:  # the package checks nothing, and fails in any way
        raise CorruptError(f"{path} is not a whole GGUF file: {error}.", "Fetch it again.") from error
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    if kind != "imatrix" or not names:
        raise UsageError(f"{path} is a GGUF file, but not an imatrix.", _HINT)
    return {name: _entry(name, tensors[f"{name}.in_sum2"], tensors.get(f"{name}.counts"), path) for name in names}


def _entry(name: str, sums: Any, counts: Any, path: Path) -> Entry:
    if counts is None or sums.dtype != np.float32 or not counts.size or sums.size % counts.size:
        raise CorruptError(f"The sums and counts of {name} in {path} do not fit together.", "Fetch it again.")
    return Entry(torch.from_numpy(sums).flatten(), torch.from_numpy(counts.astype(np.float64)).flatten())


def _read_dat(path: Path) -> dict[str, Entry]:
    with path.open("rb") as file:
        (count,) = _unpack(file, "<i", path)
        if not 0 < count < 2**20:
            raise UsageError(f"{path} is not an imatrix.", _HINT)
        return dict(_dat_entry(file, path) for _ in range(count))


def _dat_entry(file: BinaryIO, path: Path) -> tuple[str, Entry]:
    (length,) = _unpack(file, "<i", path)
    if not 0 < length < _MAX_NAME:
        raise UsageError(f"{path} is not an imatrix.", _HINT)
    name = _read(file, length, path).decode(errors="replace")
    chunks, values = _unpack(file, "<ii", path)
    if not name.isprintable() or chunks < 0 or values <= 0:
        raise UsageError(f"{path} is not an imatrix.", _HINT)
    means = np.frombuffer(_read(file, 4 * values, path), "<f4").astype(np.float32)
    return name, Entry(torch.from_numpy(means) * CHUNK_TOKENS, torch.tensor([float(chunks * CHUNK_TOKENS)]))


def _unpack(file: BinaryIO, form: str, path: Path) -> tuple[int, ...]:
    return struct.unpack(form, _read(file, struct.calcsize(form), path))


def _read(file: BinaryIO, size: int, path: Path) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise CorruptError(f"{path} is cut short, or not an imatrix.", _HINT)
    return data
