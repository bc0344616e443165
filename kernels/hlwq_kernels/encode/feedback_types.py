"""The types that all encoders with error feedback share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

LARGEST_BLOCK = 64
"""Weights of a block that a thread of the CUDA kernel can hold in its registers; larger blocks run the reference."""


class FeedbackRows(NamedTuple):
    """What `encode_feedback` returns for (..., rows, columns) weights in blocks of n.

    The first five are those of `EncodedRows`, with the leading dimensions of the weight. w is a row as it is coded:
    rotated and padded; d is w minus the decoded row, and H are the moments that the factor was made of.

    Attributes:
        codes: uint8 (..., rows, padded * bits / 8), packed planes; padded = columns rounded up to whole blocks.
        scales: uint8 (..., rows, padded / n).
        base: bfloat16 (..., rows).
        error: float64 (..., rows): d'd, the squared error.
        energy: float64 (..., rows): w'w; NaN where a weight is not finite or reaches 2^120.
        loss: float64 (..., rows): d'Hd, the squared error of the outputs over the tokens that H sums.
        loss_energy: float64 (..., rows): w'Hw, the energy of the outputs.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    base: torch.Tensor
    error: torch.Tensor
    energy: torch.Tensor
    loss: torch.Tensor
    loss_energy: torch.Tensor


@dataclass(frozen=True)
class FeedbackFactor:
    """The moments H of a layer's rotated inputs, factored for feedback: H^-1 = V' diag(1 / cost) V.

    An error e in column j is corrected by subtracting e V[j, i] from every later column i. What cannot be corrected
    then costs cost[j] e^2, and these costs sum to d'Hd.

    Attributes:
        upper: (..., padded, padded): V, upper triangular with a diagonal of ones; float64 or float32.
        cost: (..., padded), same dtype.
    """

    upper: torch.Tensor
    cost: torch.Tensor

    def __getitem__(self, index: int | slice) -> FeedbackFactor:
        """Return the factor of one expert, or of several."""
        return FeedbackFactor(self.upper[index], self.cost[index])

    def to(self, device: torch.device, dtype: torch.dtype) -> FeedbackFactor:
        """Return the factor on a device, in a dtype."""
        return FeedbackFactor(self.upper.to(device, dtype), self.cost.to(device, dtype))
