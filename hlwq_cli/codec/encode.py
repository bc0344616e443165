"""A weight of any leading dimensions to codes, and back."""

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
    """What coding cost: sums over weights, in float64. Sums of several weights add.

    Attributes:
        error: sum of (w - w')^2; a padded tail counts the error of its padding too.
        energy: sum of w^2.
    """

    error: float = 0.0
    energy: float = 0.0

    def __add__(self, other: SquaredError) -> SquaredError:
        return SquaredError(self.error + other.error, self.energy + other.energy)

    @property
    def relative(self) -> float:
        """||W - W'||^2 / ||W||^2; zero for a zero weight."""
        return self.error / self.energy if self.energy else 0.0


def encode(
    weight: torch.Tensor, scheme: Scheme, name: str = "weight", first_row: int = 0, lead: tuple[int, ...] | None = None
) -> tuple[Coded, SquaredError]:
    """Code a weight.

    Args:
        weight: (..., out, in), float32, bfloat16 or float16.
        scheme: how.
        name: for messages.
        first_row: where `weight` is a slice of a larger tensor's rows, the number of its first, for messages.
        lead: the leading dimensions of that larger tensor, for messages.

    Returns:
        The coded weight, and what coding cost.

    Raises:
        NonFiniteError: a weight is NaN, infinite, or 2^120 and more in magnitude; names the tensor and the index.
        UnsupportedError: a block's norm does not fit the float16 scale of the `fp16` kind.

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
    """What `encode_rows` says that coding rows cost, or the error it says was met.

    Args:
        error: float64 (rows,), as `encode_rows` gives it.
        energy: likewise.
        rows: (rows, columns), the weights, on any device; looked at only where one is not finite.
        name: of the tensor they belong to, for messages.
        first_row: of that tensor.
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
        f"{name}{index} is {value}, which no code can stand for.",
        "Repair the checkpoint, or keep this tensor with --exclude.",
    )


def decode(coded: Coded, centroids: torch.Tensor | None = None) -> torch.Tensor:
    """The float32 weight, of shape `coded.shape`, that the codes stand for.

    Args:
        coded: the weight.
        centroids: float32 (2^bits,), as the checkpoint states them; by default this library's own.
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
