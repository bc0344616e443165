"""The types that all encoders share."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

ScaleKind = Literal["log8", "fp16"]


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
