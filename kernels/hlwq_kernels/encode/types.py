"""The types that all encoders share."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..codes import PartLayout, ScaleKind, layout

__all__ = ["EncodedRows", "ScaleKind", "encoded_layout"]


class EncodedRows(NamedTuple):
    """What `encode_rows` returns for (rows, columns) weights in blocks of n.

    Attributes:
        codes: uint8 (rows, padded * bits / 8), packed planes; padded = columns rounded up to whole blocks.
        scales: uint8 (rows, padded / n) for `log8`, float16 of that shape for `fp16`.
        base: bfloat16 (rows,) for `log8`, None for `fp16`.
        error: float64 (rows,): sum of squared differences between weights and decoded weights; infinite where a
            block's norm does not fit float16.
        energy: float64 (rows,): sum of squared weights; NaN where a weight is not finite or reaches 2^120.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    base: torch.Tensor | None
    error: torch.Tensor
    energy: torch.Tensor


def encoded_layout(shape: tuple[int, ...], bits: int, block_size: int, scale: ScaleKind) -> dict[str, PartLayout]:
    """Return the shape and dtype of each field of `EncodedRows` for (rows, columns) weights; no base for `fp16`."""
    costs: PartLayout = (shape[:-1], torch.float64)
    return {**layout(shape, bits, block_size, scale), "error": costs, "energy": costs}
