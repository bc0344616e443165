"""The two things that can become of a tensor: it is coded, or it is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...codec import Scheme, part_name
from ..io import DTYPES, SourceRows, TensorInfo

StoredTensor = tuple[str, torch.dtype, tuple[int, ...]]
"""Name, dtype and shape of a tensor in a shard."""


@dataclass(frozen=True)
class CodedTensor:
    """One coded matrix, or one stack of them.

    Attributes:
        name: module path of a matrix `weight`, else the parameter's name.
        role: of its tensors.
        shape: (out, in), or (experts, out, in).
        scheme: how it is coded.
        parts: the stored rows that, one after the other, are the rows of the coded tensor.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    scheme: Scheme
    parts: tuple[SourceRows, ...]

    @property
    def rows(self) -> int:
        """Product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def matrices(self) -> int:
        """How many matrices it holds: its experts, or one."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def stored_tensors(self) -> tuple[StoredTensor, ...]:
        """The tensors that are written: codes, scales and, with `log8`, base."""
        layout = self.scheme.layout(self.shape)
        return tuple(
            (part_name(self.name, part, len(self.shape)), dtype, shape) for part, (shape, dtype) in layout.items()
        )

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.rows * self.scheme.row_bytes(self.shape[-1])

    @property
    def weights(self) -> int:
        """Number of weights, padding not counted."""
        return math.prod(self.shape)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of its source tensors, each once, in the order of its rows."""
        return tuple(dict.fromkeys(part.name for part in self.parts))

    @property
    def is_concatenation(self) -> bool:
        """Whether its rows are those of whole source tensors, one after the other."""
        return all(part.is_whole for part in self.parts)

    @property
    def parameter(self) -> str:
        """Name of the model's parameter that it stands for."""
        return f"{self.name}.weight" if len(self.shape) == 2 else self.name

    @property
    def source_bytes(self) -> int:
        """Bytes of its rows in the source."""
        return sum(p.nbytes for p in self.parts)


@dataclass(frozen=True)
class KeptTensor:
    """A tensor that is copied bit for bit."""

    info: TensorInfo
    role: str
    reason: str

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self.info.name

    @property
    def stored_tensors(self) -> tuple[StoredTensor, ...]:
        """The one tensor that is written."""
        return ((self.info.name, DTYPES[self.info.dtype], self.info.shape),)

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.info.nbytes

    @property
    def source_bytes(self) -> int:
        """Bytes of the source tensor."""
        return self.info.nbytes


PlannedTensor = CodedTensor | KeptTensor


def stored_bytes(stored: StoredTensor) -> int:
    """Return the bytes of a stored tensor."""
    return math.prod(stored[2]) * stored[1].itemsize
