"""What is stored of a quantized weight: the names, shapes and dtypes of its parts. This is their only home.

A weight of shape (..., out, in) is padded along `in` to whole blocks. Its parts have the leading dimensions of the
weight:

    codes   uint8 (..., out, padded * bits / 8)     packed bit planes
    scales  uint8 or float16 (..., out, padded / block_size)
    base    bfloat16 (..., out)                     with `log8` only
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from .integers import ceil_div

ScaleKind = Literal["log8", "fp16"]

PARTS = ("codes", "scales", "base")
"""Names of all parts, in the order in which they are stored and hashed."""

PartLayout = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a part."""


@dataclass(frozen=True)
class ScaleFormat:
    """How block scales of one kind are stored.

    Attributes:
        dtype: of `scales`.
        base_dtype: of `base`, which each row has one of; None where scales need no base.
    """

    dtype: torch.dtype
    base_dtype: torch.dtype | None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that a weight with such scales has."""
        return PARTS if self.base_dtype is not None else PARTS[:2]


SCALE_FORMATS: dict[ScaleKind, ScaleFormat] = {
    "log8": ScaleFormat(torch.uint8, torch.bfloat16),
    "fp16": ScaleFormat(torch.float16, None),
}


def padded_columns(columns: int, block_size: int) -> int:
    """Return `columns` rounded up to whole blocks."""
    return ceil_div(columns, block_size) * block_size


def layout(shape: tuple[int, ...], bits: int, block_size: int, scale: ScaleKind) -> dict[str, PartLayout]:
    """Return the shape and dtype of each part of a weight.

    Args:
        shape: (..., out, in) of the weight.
        bits: width of a code.
        block_size: weights that share a scale.
        scale: kind of block scale.
    """
    lead, padded, scales = shape[:-1], padded_columns(shape[-1], block_size), SCALE_FORMATS[scale]
    parts: dict[str, PartLayout] = {
        "codes": ((*lead, padded * bits // 8), torch.uint8),
        "scales": ((*lead, padded // block_size), scales.dtype),
    }
    if scales.base_dtype is not None:
        parts["base"] = (lead, scales.base_dtype)
    return parts


def part_name(name: str, part: str, dimensions: int) -> str:
    """Return the key under which a part is stored.

    `layer` becomes `layer.codes`. A stack `experts.gate_up_proj` becomes `experts.codes_gate_up_proj`, because
    transformers matches names that START with `gate_up_proj` when it saves.

    Args:
        name: of the weight: the module's path, and the parameter's name for stacked experts.
        part: one of `PARTS`.
        dimensions: of the weight, 2 or 3.
    """
    if dimensions == 2:
        return f"{name}.{part}"
    prefix, _, last = name.rpartition(".")
    return f"{prefix}.{part}_{last}"
