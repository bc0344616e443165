"""A quantized weight as the product kernels take it, and the macros of common/dequant.cuh for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..common import DTYPE_IDS, Macros
from .tables import bits_of, scale_steps_on

SHARED_BYTES = 48 * 2**10
"""Static shared memory that CUDA allows a CTA. With more, which must be dynamic, the products became faster and a whole
model slower; the cause is not certain (one H100, 2026-11-28, docs/log.md)."""
_TABLE_BYTES = 32 * 2**10
"""Bytes of the table with all its copies, at most. Half the size made no difference to the product of one token (one
H100, 2026-11-25, docs/log.md)."""


class QuantizedWeight(NamedTuple):
    """A quantized weight (..., out, in). Its tensors are those of `decode_rows`, each with these leading dimensions."""

    codes: torch.Tensor
    scales: torch.Tensor
    base: torch.Tensor | None
    centroids: torch.Tensor
    block_size: int

    @property
    def padded(self) -> int:
        """Columns, padding included."""
        return self.scales.shape[-1] * self.block_size

    @property
    def bits(self) -> int:
        """Width of a code."""
        return bits_of(self.centroids)


def kernel_macros(weight: QuantizedWeight, y: torch.Tensor, threads: int, copies: int) -> Macros:
    """Return the macros of common/dequant.cuh except INPUT, and those of blocks and scales."""
    row_bytes = weight.codes.shape[-1]
    return (
        ("BITS", weight.bits), ("ALIGN", min(16, row_bytes & -row_bytes)), ("COPIES", copies),
        ("OUTPUT", DTYPE_IDS[y.dtype]), ("THREADS", threads), ("N", weight.block_size),
        ("LOG8", int(weight.base is not None)),
    )  # fmt: skip


def table_copies(bits: int, other_bytes: int) -> int:
    """Return the copies of the table of centroids in shared memory: at most one per bank.

    Args:
        bits: width of a code.
        other_bytes: what else is in shared memory.
    """
    available = min(SHARED_BYTES - other_bytes, _TABLE_BYTES)
    return 1 << min(5, max(1, available // table_bytes(bits, 1)).bit_length() - 1)


def table_bytes(bits: int, copies: int) -> int:
    """Return the bytes of the table of common/dequant.cuh, in all its copies."""
    return 4 * copies << (2 * bits if bits <= 6 else bits)


def weight_arguments(weight: QuantizedWeight, y: torch.Tensor) -> tuple[Any, ...]:
    """Return the arguments that kernels take of a weight, for a result on the device of `y`."""
    return *weight[:3], weight.centroids.to(y.device), scale_steps_on(y.device)


def to_kernel_layout(weight: QuantizedWeight, experts: bool) -> QuantizedWeight:
    """Return the weight as kernels read it.

    Each part is contiguous, or with `experts` contiguous per expert. Codes start at a multiple of 16 bytes.
    """
    codes, scales, base = (None if t is None else _contiguous(t, experts) for t in weight[:3])
    assert codes is not None
    assert scales is not None
    return weight._replace(codes=codes if codes.data_ptr() % 16 == 0 else codes.clone(), scales=scales, base=base)


def _contiguous(part: torch.Tensor, experts: bool) -> torch.Tensor:
    return part if part.is_contiguous() or (experts and part[0].is_contiguous()) else part.contiguous()
