"""The encoder with error feedback, compiled for the CPU by numba, without the GIL.

The search codes two rows together: its inner loops run over their candidates, which are independent. It rounds the
boundaries between values to fine cells. The best scale then codes the block with the same cells: with exact boundaries
it would take other codes than those that the search found best, and the loss would be 4 to 12 % larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from ..codes import (
    ERROR_UNIT,
    HALF_STEP,
    SCALE_STEPS,
    SEARCH_HIGH,
    SEARCH_LOW,
    CodeTables,
    Float32Array,
    padded_columns,
    plane_widths,
)
from ..codes.blocks_numba import f32, jit, measure, pack_row, power_of_two, round_up_bf16, row_range, step_below
from .feedback_reference import HEADROOM
from .feedback_types import FeedbackFactor, FeedbackRows

_CANDIDATES = 32
"""Lanes of a row: the scales of the search, the outermost, zero, and zero once more."""
_LANES = 2 * _CANDIDATES
_STEPS = SEARCH_HIGH - SEARCH_LOW + 1
_TILE = 16
"""Rows that are coded block by block together, so that rows of the factor are read from the cache."""
_FUSED = 8
"""Columns whose errors are subtracted from later columns at once."""
_FINEST = 1024.0
"""Most cells per unit of the search's table: it must fit the first cache."""


def _fused(function: Callable[..., Any]) -> Any:
    """Compile as `jit` does, with fused multiply-add."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)


@jit
def _prepare(weight, order, inverse_root, inverse_outermost, z, bases, units, energies):  # type: ignore[no-untyped-def]
    """Normalize and rotate rows; rows that are not coded become zeros."""
    n = 1 << len(order)
    blocks = z.shape[1] // n
    energy, outermost, work = np.empty(blocks, f32), np.empty(blocks, f32), np.empty(n, f32)
    for row in range(weight.shape[0]):
        finite, some, exponent = row_range(weight[row].view(np.uint32))
        bases[row], units[row], energies[row] = f32(0.0), f32(1.0), 0.0 if finite else np.nan
        if finite and some:
            up, down = power_of_two(exponent), power_of_two(-exponent)
            measure(weight[row], down, inverse_root, inverse_outermost, order, z[row], energy, outermost, work)
            base, total = f32(0.0), np.int64(0)
            for b in range(blocks):
                base = max(base, max(np.sqrt(energy[b] / f32(n)) * f32(HEADROOM), outermost[b]))
                total += np.int64(energy[b] * f32(ERROR_UNIT))
            bases[row], units[row] = round_up_bf16(base), up
            energies[row] = total * (np.float64(up) * np.float64(up) / ERROR_UNIT)
        else:
            z[row, :] = f32(0.0)


@jit
def _list_candidates(left, base, search, steps, inverse_outermost, stored, scales):  # type: ignore[no-untyped-def]
    """List the scales to try for a block, as stored and decoded."""
    stored[:], scales[:] = f32(0.0), f32(0.0)
    if base == f32(0.0):
        return
    total, largest = f32(0.0), f32(0.0)
    for x in left:
        total += x * x
        largest = max(largest, abs(x))
    rms = np.sqrt(total / f32(left.size))
    if search:
        middle = step_below(steps, rms / base)
        for j in range(_STEPS):
            stored[j] = min(max(middle + SEARCH_LOW + j, 1), 255)
        stored[_STEPS] = max(step_below(steps, largest * inverse_outermost / base), 1)
    else:
        stored[0] = max(step_below(steps, rms * f32(HALF_STEP) / base), 1)
    for j in range(_STEPS + 1):
        scales[j] = base * steps[np.int32(stored[j])]


@_fused
def _quantize(x, values, scales, inverse, cost, work, index, loss):  # type: ignore[no-untyped-def]
    """Turn one column of every candidate into its errors."""
    top = f32(values.size - 1)
    for c in range(_LANES):
        index[c] = np.int32(min(abs(x[c]) * inverse[c], top))
    for c in range(_LANES):
        work[c] = values[index[c]]
    for c in range(_LANES):
        d = abs(x[c]) - work[c] * scales[c]
        e = d if x[c] >= f32(0.0) else -d
        x[c] = e
        loss[c] += cost * e * e


@_fused
def _search(scales, inverse, upper, cost, values, order, state, work, index, loss):  # type: ignore[no-untyped-def]
    """Code the block in `state`, (n, lanes), with every candidate; fills `loss`."""
    n = 1 << len(order)
    loss[:] = f32(0.0)
    for first in range(0, n, _FUSED):
        for j in range(first, first + _FUSED):
            x = state[j]
            _quantize(x, values, scales, inverse, cost[j], work, index, loss)
            for i in range(j + 1, first + _FUSED):
                y, u = state[i], upper[j, i]
                for c in range(_LANES):
                    y[c] -= x[c] * u
        for i in range(first + _FUSED, n):
            y = state[i]
            x0, x1, x2, x3 = state[first], state[first + 1], state[first + 2], state[first + 3]
            x4, x5, x6, x7 = state[first + 4], state[first + 5], state[first + 6], state[first + 7]
            u0, u1, u2, u3 = upper[first, i], upper[first + 1, i], upper[first + 2, i], upper[first + 3, i]
            u4, u5, u6, u7 = upper[first + 4, i], upper[first + 5, i], upper[first + 6, i], upper[first + 7, i]
            for c in range(_LANES):
                near = x0[c] * u0 + x1[c] * u1 + x2[c] * u2 + x3[c] * u3
                y[c] -= near + (x4[c] * u4 + x5[c] * u5 + x6[c] * u6 + x7[c] * u7)


@_fused
def _code(left, s, fine, upper, cost, values, upper_codes, original, order, codes, errors):  # type: ignore[no-untyped-def]
    """Code a block as the search did; return the squared error and the loss. Destroys `left`."""
    n = 1 << len(order)
    inverse, top = fine / s if s > f32(0.0) else f32(0.0), f32(values.size - 1)
    error, loss = 0.0, 0.0
    for j in range(n):
        x, q = left[j], f32(0.0)
        codes[j] = 0
        if s > f32(0.0):
            index = np.int32(min(abs(x) * inverse, top))
            is_positive = x >= f32(0.0)
            codes[j] = upper_codes[index] if is_positive else upper_codes[0] + upper_codes[0] - 1 - upper_codes[index]
            q = values[index] * s if is_positive else -values[index] * s
        e = x - q
        errors[j] = e
        for i in range(n):  # all of them, so that the loop has no remainder: the factor is zero before column j
            left[i] -= e * upper[j, i]
        d = np.float64(original[j]) - np.float64(q)
        error += d * d
        loss += np.float64(cost[j]) * np.float64(e) * np.float64(e)
    return error, loss


@_fused
def _spread(errors, upper, first, order, left):  # type: ignore[no-untyped-def]
    """Subtract the errors of a block, (tile, n), from the later blocks of the tile's rows."""
    n = 1 << len(order)
    for start in range(first + n, left.shape[1], n):
        end = start + n
        for j in range(0, n, 8):
            at = first + j
            u0, u1, u2, u3 = upper[at], upper[at + 1], upper[at + 2], upper[at + 3]
            u4, u5, u6, u7 = upper[at + 4], upper[at + 5], upper[at + 6], upper[at + 7]
            for row in range(left.shape[0]):
                y, e = left[row], errors[row]
                e0, e1, e2, e3 = e[j], e[j + 1], e[j + 2], e[j + 3]
                e4, e5, e6, e7 = e[j + 4], e[j + 5], e[j + 6], e[j + 7]
                for i in range(start, end):
                    near = e0 * u0[i] + e1 * u1[i] + e2 * u2[i] + e3 * u3[i]
                    y[i] -= near + (e4 * u4[i] + e5 * u5[i] + e6 * u6[i] + e7 * u7[i])


@jit
def _best(loss):  # type: ignore[no-untyped-def]
    best = 0
    for c in range(1, loss.size):
        if loss[c] < loss[best]:
            best = c
    return best


@jit
def _encode(  # type: ignore[no-untyped-def]
    z,
    bases,
    units,
    upper,
    cost,
    search,
    order,
    widths,
    steps,
    values,
    upper_codes,
    fine,
    inverse_outermost,
    packed,
    stored,
    errors,
    losses,
):
    n = 1 << len(order)
    rows, padded = z.shape
    tile, codes = np.empty((_TILE, padded), f32), np.empty((_TILE, padded), np.uint8)
    wrong, state = np.zeros((_TILE, n), f32), np.empty((n, _LANES), f32)
    marks, scales, inverse = np.empty(_LANES, f32), np.empty(_LANES, f32), np.empty(_LANES, f32)
    work, index, loss = np.empty(_LANES, f32), np.empty(_LANES, np.int32), np.empty(_LANES, f32)
    block_upper, block_cost = np.empty((n, n), f32), np.empty(n, f32)
    for top in range(0, rows, _TILE):
        held = min(_TILE, rows - top)
        tile[:held] = z[top : top + held]
        errors[top : top + held], losses[top : top + held] = 0.0, 0.0
        for first in range(0, padded, n):
            block_upper[:] = upper[first : first + n, first : first + n]
            block_cost[:] = cost[first : first + n]
            for pair in range(0, held, 2):
                for half in range(2):
                    row, at = min(pair + half, held - 1), half * _CANDIDATES
                    left, until = tile[row, first : first + n], at + _CANDIDATES
                    _list_candidates(
                        left, bases[top + row], search, steps, inverse_outermost, marks[at:until], scales[at:until]
                    )
                    for j in range(n):
                        for c in range(_CANDIDATES):
                            state[j, at + c] = left[j]
                for c in range(_LANES):
                    inverse[c] = fine / scales[c] if scales[c] > f32(0.0) else f32(0.0)
                _search(scales, inverse, block_upper, block_cost, values, order, state, work, index, loss)
                for row in range(pair, min(pair + 2, held)):
                    at = (row - pair) * _CANDIDATES
                    best = at + _best(loss[at : at + _CANDIDATES])
                    error, cost_of_row = _code(
                        tile[row, first : first + n],
                        scales[best],
                        fine,
                        block_upper,
                        block_cost,
                        values,
                        upper_codes,
                        z[top + row, first : first + n],
                        order,
                        codes[row, first : first + n],
                        wrong[row],
                    )
                    stored[top + row, first // n] = marks[best]
                    errors[top + row] += error
                    losses[top + row] += cost_of_row
            _spread(wrong[:held], upper, first, order, tile[:held])
        for row in range(held):
            unit = np.float64(units[top + row])
            errors[top + row] *= unit * unit
            losses[top + row] *= unit * unit
            pack_row(codes[row], widths, packed[top + row])


def _fine_cells(tables: CodeTables) -> tuple[Float32Array, npt.NDArray[np.uint8], float]:
    """Return the positive centroid and its code at the middle of each cell, and the number of cells per unit."""
    per_unit = min(4 * tables.cells_per_unit, _FINEST)
    cells = math.ceil(float(tables.centroids[-1]) * per_unit) + 1
    middles = ((np.arange(cells) + 0.5) / per_unit).astype(np.float32)
    codes = np.searchsorted(tables.boundaries[:-1], middles)
    return tables.centroids[codes], codes.astype(np.uint8), per_unit


def encode_feedback_numba(
    weight: torch.Tensor, factor: FeedbackFactor, tables: CodeTables, block_size: int, search: bool
) -> FeedbackRows:
    """Encode (experts, rows, columns) weights on the CPU; see `encode_feedback`."""
    experts = [_encode_rows(weight[e], factor[e], tables, block_size, search) for e in range(len(weight))]
    return FeedbackRows(*(torch.stack(field) for field in zip(*experts, strict=True)))


def _encode_rows(
    weight: torch.Tensor, factor: FeedbackFactor, tables: CodeTables, n: int, search: bool
) -> FeedbackRows:
    rows, padded = len(weight), padded_columns(weight.shape[1], n)
    upper, cost = (t.to(torch.float32).contiguous() for t in (factor.upper, factor.cost))
    order, inverse_outermost = (0,) * (n.bit_length() - 1), f32(tables.inverse_outermost)
    z = torch.empty(rows, padded)
    base, unit = torch.empty(rows), torch.empty(rows)
    error, energy, loss = (torch.empty(rows, dtype=torch.float64) for _ in range(3))
    single = weight.to(torch.float32).contiguous().numpy()
    _prepare(single, order, f32(n**-0.5), inverse_outermost, *(t.numpy() for t in (z, base, unit, energy)))
    codes = torch.empty(rows, padded * tables.bits // 8, dtype=torch.uint8)
    scales = torch.empty(rows, padded // n)
    values, upper_codes, fine = _fine_cells(tables)
    _encode(
        z.numpy(),
        base.numpy(),
        unit.numpy(),
        upper.numpy(),
        cost.numpy(),
        search,
        order,
        np.array(plane_widths(tables.bits)),
        SCALE_STEPS,
        values,
        upper_codes,
        f32(fine),
        inverse_outermost,
        codes.numpy(),
        scales.numpy(),
        error.numpy(),
        loss.numpy(),
    )
    outputs = torch.linalg.solve_triangular(upper, z, upper=True, left=False, unitriangular=True)
    return FeedbackRows(
        codes=codes,
        scales=scales.to(torch.uint8),
        base=(base * unit).to(torch.bfloat16),
        error=error,
        energy=energy,
        loss=loss,
        loss_energy=(outputs.square() * cost).sum(dim=1, dtype=torch.float64) * unit.to(torch.float64) ** 2,
    )
