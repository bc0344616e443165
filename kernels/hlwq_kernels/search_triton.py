"""The second kernel of the CUDA encoder: a block's scale, its codes and its error."""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks_triton import LANE, fold, load_block, magnitude, normalized, power_of_two, tree_energy
from .planes_triton import store_planes
from .rows_triton import NOT_CODED
from .tables import ERROR_UNIT, HALF_STEP, SEARCH_FACTORS, SEARCH_LOW

_HALF_STEP = tl.constexpr(HALF_STEP)
_SEARCH_LOW = tl.constexpr(SEARCH_LOW)
_FACTORS = tl.constexpr(len(SEARCH_FACTORS))
_ERROR_UNIT = tl.constexpr(ERROR_UNIT)


@triton.jit
def _step_below(steps, ratio):
    """The largest k with steps[k] <= ratio: a guess that is off by one at most, then the table decides."""
    guess = tl.floor(tl.log2(tl.maximum(ratio, 1e-3)) * 32.0).to(tl.int32) + 255
    k = tl.minimum(tl.maximum(guess, 0), 255)
    k -= (tl.load(steps + k) > ratio).to(tl.int32)
    return k + (tl.load(steps + k + 1) <= ratio).to(tl.int32)


@triton.jit
def _first_and_last(
    energy, outermost, base, steps, root, GROUPS: tl.constexpr, LOG8: tl.constexpr, SEARCH: tl.constexpr
):
    """Where the candidates start, and the one at which the largest coefficient meets the outermost centroid.

    Steps for `log8`, else the norms to be rounded; without search the start is the only candidate.
    """
    if LOG8:
        rms = tl.sqrt_rn(energy * (1.0 / (GROUPS * LANE)))
        divisor = tl.where(base > 0, base, 1.0)
        if SEARCH:
            start = _step_below(steps, tl.div_rn(rms, divisor)) + _SEARCH_LOW
            last = _step_below(steps, tl.div_rn(outermost, divisor))
        else:
            start = _step_below(steps, tl.div_rn(rms * _HALF_STEP, divisor))
            last = start
    else:
        start, last = tl.sqrt_rn(energy), outermost * root
    return start, last


@triton.jit
def _candidate(
    j, start, last, base, exponent, steps, factors, inverse_root, LOG8: tl.constexpr, SEARCH: tl.constexpr
):  # fmt: skip
    """Candidate j: what would be stored, as float32, and the scale it decodes to."""
    if LOG8:
        k = tl.where(j < _FACTORS, start + j, last)
        k = tl.minimum(tl.maximum(k, 1), 255)
        mark, s = k.to(tl.float32), base * tl.load(steps + k)
    else:
        wanted = start
        if SEARCH:
            wanted = tl.where(j < _FACTORS, start * tl.load(factors + j), last)
        mark = (wanted * power_of_two(exponent)).to(tl.float16).to(tl.float32)
        s = mark * power_of_two(-exponent) * inverse_root
    return mark, s


@triton.jit
def _error_by_cells(z, s, values, per_unit, top, GROUPS: tl.constexpr):
    """The error of coding against the scale s, boundaries rounded to cells; of no meaning where s is zero."""
    inverse = tl.where(s > 0, tl.div_rn(per_unit, s), 0.0)[:, None]
    squares = ()
    for g in tl.static_range(GROUPS):
        v = tl.abs(z[g]) * inverse
        d = v - tl.load(values + tl.minimum(v, top).to(tl.int32))
        squares = squares + (d * d,)
    return fold(squares, GROUPS) * (s * s)


@triton.jit
def _code(z, s, per_unit, cells, cell_codes, boundaries, centroids, GROUPS: tl.constexpr):
    """Codes against the scale s, a tuple of int32 (blocks, 8), and the error."""
    inverse = tl.where(s > 0, tl.div_rn(1.0, s), 0.0)[:, None]
    low, high = -cells.to(tl.float32), (cells - 1).to(tl.float32)
    codes, squares = (), ()
    for g in tl.static_range(GROUPS):
        u = z[g] * inverse
        cell = tl.floor(tl.minimum(tl.maximum(u * per_unit, low), high)).to(tl.int32) + cells
        c = tl.load(cell_codes + cell)
        c += (u > tl.load(boundaries + c)).to(tl.int32)
        d = u - tl.load(centroids + c)
        codes, squares = codes + (c,), squares + (d * d,)
    return codes, fold(squares, GROUPS) * (s * s)


@triton.jit(do_not_specialize=["total", "blocks", "row_bytes", "cells"])
def blocks_kernel(
    weight, total, blocks, row_bytes, root, inverse_root, inverse_outermost, per_unit, cells,
    exponents, bases, steps, factors, centroids, boundaries, cell_codes, cell_values,
    packed, stored, errors,
    BITS: tl.constexpr, GROUPS: tl.constexpr, THREADS: tl.constexpr, LOG8: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    """Code THREADS blocks a program, of `total` below 2^31; adds each block's error to that of its row."""
    block = tl.program_id(0) * THREADS + tl.arange(0, THREADS)
    inside = block < total
    row = block // blocks
    exponent = tl.load(exponents + row, mask=inside, other=NOT_CODED)
    coded = exponent != NOT_CODED
    exponent = tl.where(coded, exponent, 0)
    base = tl.load(bases + row, mask=inside, other=0.0)
    x = load_block(weight, block.to(tl.int64) * (GROUPS * LANE), coded, GROUPS)
    z = normalized(x, power_of_two(-exponent), inverse_root, GROUPS)
    energy = tree_energy(z, GROUPS)
    outermost = magnitude(z, GROUPS) * inverse_outermost
    start, last = _first_and_last(energy, outermost, base, steps, root, GROUPS, LOG8, SEARCH)
    mark, s = _candidate(0, start, last, base, exponent, steps, factors, inverse_root, LOG8, SEARCH)
    if SEARCH:
        best, top = tl.full((THREADS,), float("inf"), tl.float32), (cells - 1).to(tl.float32)
        for j in range(_FACTORS + 1):
            other, t = _candidate(j, start, last, base, exponent, steps, factors, inverse_root, LOG8, SEARCH)
            error = _error_by_cells(z, t, cell_values, per_unit, top, GROUPS)
            better = (error < best) & (t > 0)
            best, mark, s = tl.where(better, error, best), tl.where(better, other, mark), tl.where(better, t, s)
    codes, error = _code(z, s, per_unit, cells, cell_codes, boundaries, centroids, GROUPS)
    kept = (error < energy) & (s > 0)
    mark, error = tl.where(kept, mark, 0.0), tl.where(kept, error, energy)
    tl.store(stored + block, mark.to(tl.int32).to(tl.uint8) if LOG8 else mark.to(tl.float16), mask=inside)
    tl.atomic_add(errors + row, (error * _ERROR_UNIT).to(tl.int64), mask=inside, sem="relaxed")
    place, column = packed + row.to(tl.int64) * row_bytes, (block - row * blocks) * (GROUPS * LANE)
    store_planes(place, column, codes, kept, inside, blocks * (GROUPS * LANE), BITS, GROUPS)
