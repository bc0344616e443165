"""The reference of the encoder with error feedback: its definition, readable and slow."""

from __future__ import annotations

import torch

from ..codes import (
    ERROR_UNIT,
    HALF_STEP,
    OCTAVE,
    SCALE_STEPS,
    SEARCH_HIGH,
    SEARCH_LOW,
    CodeTables,
    pack_codes,
    tree_sum,
)
from .feedback_types import FeedbackFactor, FeedbackRows
from .reference import normalize_rows, power_of_two, rotate_rows, round_up_bf16

HEADROOM = float(OCTAVE[2 * SEARCH_HIGH])
"""2^(24/32): room in a row's base, because what is left to code grows by feedback."""
_ROWS = 1024
"""Rows that are coded at once; a row takes 31 copies of a block."""


def encode_feedback_reference(
    weight: torch.Tensor, factor: FeedbackFactor, tables: CodeTables, block_size: int, search: bool
) -> FeedbackRows:
    """Encode (experts, rows, columns) weights in float64; see `encode_feedback`."""
    experts = [
        [_encode_rows(rows, factor[e], tables, block_size, search) for rows in weight[e].split(_ROWS)]
        for e in range(len(weight))
    ]
    parts = [FeedbackRows(*(torch.cat(field) for field in zip(*chunks, strict=True))) for chunks in experts]
    return FeedbackRows(*(torch.stack(field) for field in zip(*parts, strict=True)))


def _encode_rows(
    weight: torch.Tensor, factor: FeedbackFactor, tables: CodeTables, n: int, search: bool
) -> FeedbackRows:
    normalized, exponent, finite = normalize_rows(weight.to(torch.float32))
    z = rotate_rows(normalized, n)
    upper, cost = factor.upper.to(torch.float64), factor.cost.to(torch.float64)
    energy = tree_sum(z * z)
    base = _base(z, energy, tables)
    whole = z.to(torch.float64).flatten(1)
    left, quantized = whole.clone(), torch.empty_like(whole)
    codes, stored = torch.empty(whole.shape, dtype=torch.uint8, device=z.device), []
    loss = whole.new_zeros(len(whole))
    for first in range(0, whole.shape[1], n):
        block, later = slice(first, first + n), slice(first + n, None)
        steps = _candidates(left[:, block], base, tables, search)
        tried, values, errors = _run(left[:, block], steps, base, upper[block, block], tables)
        losses = (errors.square() * cost[block]).sum(dim=-1)
        best = losses.argmin(dim=1)
        chosen = torch.arange(len(best), device=best.device), best
        codes[:, block], quantized[:, block] = tried[chosen], values[chosen]
        stored.append(torch.where(base > 0, steps[chosen], 0))
        loss += losses[chosen]
        left[:, later] -= errors[chosen] @ upper[block, later]
    unit = power_of_two(exponent).to(torch.float64) ** 2
    outputs = torch.linalg.solve_triangular(upper, whole, upper=True, left=False, unitriangular=True)
    return FeedbackRows(
        codes=pack_codes(codes, tables.bits),
        scales=torch.stack(stored, dim=1).to(torch.uint8),
        base=(base * power_of_two(exponent)).to(torch.bfloat16),
        error=(whole - quantized).square().sum(dim=1) * unit,
        energy=torch.where(finite, (energy * ERROR_UNIT).to(torch.int64).sum(dim=1) * (unit / ERROR_UNIT), torch.nan),
        loss=loss * unit,
        loss_energy=(outputs.square() * cost).sum(dim=1) * unit,
    )


def _base(z: torch.Tensor, energy: torch.Tensor, tables: CodeTables) -> torch.Tensor:
    rms = torch.sqrt(energy / z.shape[-1])
    outermost = z.abs().amax(dim=-1) * tables.inverse_outermost
    return round_up_bf16(torch.maximum(rms * HEADROOM, outermost).amax(dim=1))


def _candidates(left: torch.Tensor, base: torch.Tensor, tables: CodeTables, search: bool) -> torch.Tensor:
    """Return the scale indices to try, int64 (rows, candidates); the last is 0, which drops the block."""
    steps = torch.from_numpy(SCALE_STEPS).to(left.device)
    divisor = torch.where(base > 0, base, 1.0)

    def step_below(value: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(steps, (value.to(torch.float32) / divisor).contiguous(), right=True) - 1

    rms = left.square().mean(dim=1).sqrt()
    if search:
        middle = step_below(rms)
        outermost = step_below(left.abs().amax(dim=1) * tables.inverse_outermost)
        wanted = [middle + j for j in range(SEARCH_LOW, SEARCH_HIGH + 1)] + [outermost]
    else:
        wanted = [step_below(rms * HALF_STEP)]
    found = torch.stack(wanted, dim=1).clamp(1, 255)
    return torch.nn.functional.pad(found, (0, 1))


def _run(
    left: torch.Tensor, steps: torch.Tensor, base: torch.Tensor, upper: torch.Tensor, tables: CodeTables
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Code a block with each candidate scale; return codes, values and errors, (rows, candidates, n)."""
    boundaries = torch.from_numpy(tables.boundaries[:-1]).to(left.device, torch.float64)
    centroids = torch.from_numpy(tables.centroids).to(left.device, torch.float64)
    s = (base[:, None] * torch.from_numpy(SCALE_STEPS).to(left.device)[steps]).to(torch.float64)
    is_kept, divisor = s > 0, torch.where(s > 0, s, 1.0)
    state = left[:, None, :].repeat(1, steps.shape[1], 1)
    codes, values = torch.empty_like(state, dtype=torch.uint8), torch.empty_like(state)
    for j in range(left.shape[1]):
        code = torch.where(is_kept, torch.bucketize(state[..., j] / divisor, boundaries), 0)
        codes[..., j], values[..., j] = code, s * centroids[code]
        state[..., j] -= values[..., j]
        state[..., j + 1 :] -= state[..., j, None] * upper[j, j + 1 :]
    return codes, values, state
