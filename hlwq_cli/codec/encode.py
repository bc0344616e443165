"""Encode a weight of any leading dimensions, and decode it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hlwq_kernels import decode_rows
from hlwq_kernels.codes import LARGEST

from ..errors import NonFiniteError, UnsupportedError
from .codebook import lloyd_max
from .rows import encode_rows
from .scheme import Coded, Scheme


@dataclass(frozen=True)
class SquaredError:
    """The squared error of coding: float64 sums over weights. Add objects to get the sums over several tensors.

    Attributes:
        error: sum of (w - w')^2, padding of the last block included.
        energy: sum of w^2.
    """

    error: float = 0.0
    energy: float = 0.0

    def __add__(self, other: SquaredError) -> SquaredError:
        return SquaredError(self.error + other.error, self.energy + other.energy)

    @property
    def relative(self) -> float:
        """The relative error ||W - W'||^2 / ||W||^2; 0 if all weights are 0."""
        return self.error / self.energy if self.energy else 0.0


def encode(
    weight: torch.Tensor, scheme: Scheme, name: str = "weight", first_row: int = 0, lead: tuple[int, ...] | None = None
) -> tuple[Coded, SquaredError]:
    """Encode a weight.

    Args:
        weight: (..., out, in), float32, bfloat16 or float16.
        scheme: how to encode it.
        name: name of the tensor, for messages.
        first_row: if `weight` is a slice of a larger tensor: index of the first row in it, for messages.
        lead: leading dimensions of that larger tensor, for messages.

    Returns:
        The coded weight, and the squared error.

    Raises:
        NonFiniteError: a weight is NaN, infinite, or at least 2^120 in magnitude. The message names tensor and index.
        UnsupportedError: the norm of a block does not fit the float16 scale of `fp16`.

    Example:
        >>> coded, cost = encode(torch.randn(4, 128), Scheme(bits=5))
        >>> decode(coded).shape
        torch.Size([4, 128])
    """
    weight = weight.detach()
    rows = weight.reshape(math.prod(weight.shape[:-1]), weight.shape[-1])
    encoded = encode_rows(rows, scheme)
    cost = coding_cost(
        encoded.error,
        encoded.energy,
        rows,
        name,
        first_row,
        lead or (weight.shape[:-1] if not first_row else (first_row + len(rows),)),
    )
    lead = weight.shape[:-1]
    coded = Coded(
        codes=encoded.codes.reshape(*lead, encoded.codes.shape[-1]),
        scales=encoded.scales.reshape(*lead, encoded.scales.shape[-1]),
        base=None if encoded.base is None else encoded.base.reshape(lead),
        shape=tuple(weight.shape),
        scheme=scheme,
    )
    return coded, cost


def coding_cost(
    error: torch.Tensor, energy: torch.Tensor, rows: torch.Tensor, name: str, first_row: int, lead: tuple[int, ...]
) -> SquaredError:
    """Return the squared error of encoded rows, or raise the error that `encode_rows` reports in its results.

    Args:
        error: float64 (rows,), the squared error of each row as returned by `encode_rows`.
        energy: float64 (rows,), the sum of squares of each row, likewise.
        rows: (rows, columns), the weights, on any device; read only if one is not finite.
        name: name of the tensor that the rows belong to, for messages.
        first_row: index of the first row in that tensor.
        lead: leading dimensions of that tensor.

    Raises:
        NonFiniteError: see `encode`.
        UnsupportedError: see `encode`.
    """
    cost = SquaredError(float(error.sum()), float(energy.sum()))
    if math.isnan(cost.energy):
        raise _not_codable(rows, name, first_row, lead)
    if math.isinf(cost.error):
        raise UnsupportedError(
            f"A block of {name} has a norm above 65504, too large for a float16 scale.", "Use the log8 scale."
        )
    return cost


def _not_codable(rows: torch.Tensor, name: str, first_row: int, lead: tuple[int, ...]) -> NonFiniteError:
    bad = ~(rows.abs().to(torch.float32) < LARGEST)
    row, column = bad.nonzero()[0].tolist()
    value = rows[row, column].item()
    index = [int(i) for i in torch.unravel_index(torch.tensor(first_row + row), lead)] + [column]
    return NonFiniteError(
        f"{name}{index} is {value}, which cannot be coded.",
        "Repair the checkpoint, or keep this tensor with --exclude.",
    )


def decode(coded: Coded, centroids: torch.Tensor | None = None) -> torch.Tensor:
    """Return the decoded weight, float32 of shape `coded.shape`.

    Args:
        coded: the coded weight.
        centroids: float32 (2^bits,), from the checkpoint; by default those of `lloyd_max`.
    """
    if centroids is None:
        centroids = torch.tensor(lloyd_max(coded.scheme.bits), dtype=torch.float32)
    rows = math.prod(coded.shape[:-1])
    weight = decode_rows(
        coded.codes.reshape(rows, coded.codes.shape[-1]),
        coded.scales.reshape(rows, coded.scales.shape[-1]),
        None if coded.base is None else coded.base.reshape(rows),
        centroids,
        coded.scheme.block_size,
        coded.shape[-1],
    )
    return weight.reshape(coded.shape)
