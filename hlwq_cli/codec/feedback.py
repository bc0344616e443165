"""Error feedback: factor the moments of a layer's inputs, and encode weights with them."""

from __future__ import annotations

import torch

from hlwq_kernels.codes import hadamard, padded_columns
from hlwq_kernels.encode import FeedbackFactor, FeedbackRows
from hlwq_kernels.encode import encode_feedback as encode_feedback_by_tables

from ..errors import NonFiniteError, UnsupportedError, UsageError
from .moments import DAMPING, Moments
from .scheme import Scheme

_CHUNK_BYTES = 2**29
"""Moments that are factored at once; this takes about five times as much memory. Not tuned."""


def feedback_factor(moments: Moments, block_size: int, name: str = "weight") -> FeedbackFactor:
    """Rotate moments and factor their inverse.

    In float64 on the CPU, and in the dtype of the moments on a GPU. The factor is float32.

    Args:
        moments: shrunk by `shrink`. Their memory may become that of the result.
        block_size: of the scheme that weights will be coded by.
        name: of the weight, for messages.

    Returns:
        The factor, with the leading dimensions of the moments, on their device.

    Raises:
        NonFiniteError: a moment is NaN or infinite.
        UnsupportedError: the moments are not positive definite, even with three times the damping.
    """
    h = moments.h if moments.h.is_cuda else moments.h.to(torch.float64)
    stacked = h if moments.has_experts else h[None]
    padded = padded_columns(moments.inputs, block_size)
    in_place = stacked.shape[1:] == (padded, padded) and stacked.dtype == torch.float32
    upper = stacked if in_place else stacked.new_empty((len(stacked), padded, padded), dtype=torch.float32)
    cost = stacked.new_empty((len(stacked), padded), dtype=torch.float32)
    chunk = max(1, _CHUNK_BYTES // (padded * padded * h.element_size()))
    factor = _factor_diagonals if moments.is_diagonal else _factor_full
    for first in range(0, len(stacked), chunk):
        part = slice(first, first + chunk)
        upper[part], cost[part] = factor(stacked[part], padded, block_size, name)
    return FeedbackFactor(upper, cost) if moments.has_experts else FeedbackFactor(upper[0], cost[0])


def _damping(diagonal: torch.Tensor) -> torch.Tensor:
    """Return what `shrink` has added to each diagonal, (..., 1)."""
    return diagonal.mean(dim=-1, keepdim=True) * (DAMPING / (1 + DAMPING))


def _factor_full(h: torch.Tensor, padded: int, block_size: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return V and the costs of moments (experts, inputs, inputs); padding has the damping alone."""
    padding = padded - h.shape[-1]
    whole = torch.nn.functional.pad(h, (0, padding, 0, padding))
    if padding:
        whole.diagonal(dim1=-2, dim2=-1)[..., -padding:] = _damping(h.diagonal(dim1=-2, dim2=-1))
    return _factor(_rotated(whole, block_size), name)


def _factor_diagonals(h: torch.Tensor, padded: int, block_size: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same for diagonals (experts, inputs): blocks are independent."""
    experts, padding = len(h), padded - h.shape[-1]
    whole = torch.cat([h, _damping(h).expand(-1, padding)], dim=1)
    blocks = torch.diag_embed(whole.reshape(-1, block_size))
    unit, cost = _factor(_rotated(blocks, block_size), name)
    upper = h.new_zeros(experts, padded, padded)
    places = upper.view(experts, -1, block_size, padded // block_size, block_size).diagonal(dim1=1, dim2=3)
    places.copy_(unit.view(experts, -1, block_size, block_size).permute(0, 2, 3, 1))
    return upper, cost.view(experts, padded)


def _rotated(h: torch.Tensor, block_size: int) -> torch.Tensor:
    matrix = hadamard(torch.eye(block_size, dtype=h.dtype, device=h.device)) * block_size**-0.5
    for _ in range(2):
        h = (h.unflatten(-1, (-1, block_size)) @ matrix).flatten(-2).mT
    return h


def _factor(h: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return V and the costs of rotated moments; see `FeedbackFactor`.

    With rows and columns in reverse order, H = L L' gives H^-1 = U'U with U = L^-1 in reverse order.
    """
    reverse = h.flip(-1, -2)
    lower, failed = torch.linalg.cholesky_ex(reverse)
    if failed.any():
        diagonal = h.diagonal(dim1=-2, dim2=-1)
        if not diagonal.isfinite().all():
            raise NonFiniteError(f"The moments of the inputs of {name} are not finite.", "Repair the checkpoint.")
        reverse.diagonal(dim1=-2, dim2=-1).add_(torch.where(failed[:, None] > 0, 2 * _damping(diagonal), 0.0))
        lower, failed = torch.linalg.cholesky_ex(reverse)
    if failed.any():
        raise UnsupportedError(
            f"The moments of the inputs of {name} are not positive definite.",
            "Calibrate with more tokens, or quantize without --calibrate.",
        )
    identity = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device).expand_as(h)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    diagonal = inverse.diagonal(dim1=-2, dim2=-1)
    unit = (inverse / diagonal[..., None]).flip(-1, -2)
    if not unit.isfinite().all():
        raise NonFiniteError(f"The moments of the inputs of {name} are not finite.", "Repair the checkpoint.")
    return unit, diagonal.square().reciprocal().flip(-1)


def encode_feedback(weight: torch.Tensor, factor: FeedbackFactor, scheme: Scheme) -> FeedbackRows:
    """Encode weights so that the error of the layer's outputs is small, rather than that of the weights.

    Rows are independent: a call for some of the rows gives the bytes that the call for all gives them.

    Args:
        weight: (rows, columns) or (experts, rows, columns), any floating dtype.
        factor: of `feedback_factor`, with the same leading dimensions and device.
        scheme: how to encode; `log8` only.

    Raises:
        UsageError: the scheme stores other scales.
    """
    if scheme.scale != "log8":
        raise UsageError(
            f"Calibrated weights need scales of kind 'log8', not {scheme.scale!r}.",
            "Choose the scale log8, or quantize without --calibrate.",
        )
    return encode_feedback_by_tables(weight, factor, scheme.tables, scheme.block_size, scheme.search)
