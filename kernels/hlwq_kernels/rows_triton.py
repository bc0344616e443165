"""The first kernel of the CUDA encoder: what a block must know of its row."""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks_triton import LANE, load_block, magnitude, normalized, power_of_two, tree_energy
from .tables import ERROR_UNIT, LARGEST, OCTAVE, SEARCH_HIGH, SMALLEST

_LARGEST = tl.constexpr(LARGEST)
_SMALLEST = tl.constexpr(SMALLEST)
_HEADROOM = tl.constexpr(float(OCTAVE[SEARCH_HIGH]))
_ERROR_UNIT = tl.constexpr(ERROR_UNIT)
NOT_CODED = tl.constexpr(-1000)
"""In place of the exponent of a row that is coded as zeros: too small, or not finite."""


@triton.jit(do_not_specialize=["rows", "blocks"])
def rows_kernel(
    weight, rows, blocks, inverse_root, inverse_outermost,
    exponents, bases, stored_bases, energies, units, errors,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, ACROSS: tl.constexpr, LOG8: tl.constexpr,
):  # fmt: skip
    """Per row: exponent, base, energy, what one unit of the error's sum is worth, and that sum's start."""
    n: tl.constexpr = GROUPS * LANE
    thread = tl.arange(0, ROWS * ACROSS)
    row = tl.program_id(0).to(tl.int64) * ROWS + thread // ACROSS
    first, inside = row * blocks, row < rows
    bits = tl.zeros((ROWS * ACROSS, LANE), tl.int32)
    start = 0
    while start < blocks:
        block = start + thread % ACROSS
        x = load_block(weight, (first + block) * n, inside & (block < blocks), GROUPS)
        for g in tl.static_range(GROUPS):
            bits = tl.maximum(bits, x[g].to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        start += ACROSS
    largest = tl.max(tl.max(bits, axis=1).reshape(ROWS, ACROSS), axis=1)
    size = largest.to(tl.float32, bitcast=True)
    finite = size < _LARGEST
    coded = finite & (size >= _SMALLEST)
    exponent = tl.where(coded, (largest >> 23) - 127, 0)
    mine = tl.broadcast_to(coded[:, None], (ROWS, ACROSS)).reshape(ROWS * ACROSS)
    down = tl.broadcast_to(power_of_two(-exponent)[:, None], (ROWS, ACROSS)).reshape(ROWS * ACROSS)
    up = tl.broadcast_to(power_of_two(exponent)[:, None], (ROWS, ACROSS)).reshape(ROWS * ACROSS)
    base, energy, overflow = tl.zeros_like(down), tl.zeros(down.shape, tl.int64), tl.zeros(down.shape, tl.int32)
    start = 0
    while start < blocks:
        block = start + thread % ACROSS
        x = load_block(weight, (first + block) * n, inside & mine & (block < blocks), GROUPS)
        z = normalized(x, down, inverse_root, GROUPS)
        e = tree_energy(z, GROUPS)
        rms = tl.sqrt_rn(e * (1.0 / n))
        base = tl.maximum(base, tl.maximum(rms * _HEADROOM, magnitude(z, GROUPS) * inverse_outermost))
        energy += (e * _ERROR_UNIT).to(tl.int64)
        if not LOG8:
            norm = (tl.sqrt_rn(e) * up).to(tl.float16).to(tl.float32)
            overflow = tl.maximum(overflow, (norm == float("inf")).to(tl.int32))
        start += ACROSS
    largest_base = _round_up_bf16(tl.max(base.reshape(ROWS, ACROSS), axis=1))
    too_large = tl.max(overflow.reshape(ROWS, ACROSS), axis=1)
    unit = power_of_two(exponent).to(tl.float64)
    unit = unit * unit * (1.0 / _ERROR_UNIT)
    energy_sum = tl.sum(energy.reshape(ROWS, ACROSS), axis=1).to(tl.float64) * unit
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    tl.store(exponents + row, tl.where(coded, exponent, NOT_CODED), mask=inside)
    tl.store(bases + row, largest_base, mask=inside)
    if LOG8:
        tl.store(stored_bases + row, (largest_base * power_of_two(exponent)).to(tl.bfloat16), mask=inside)
    tl.store(energies + row, tl.where(finite, energy_sum, float("nan")), mask=inside)
    tl.store(units + row, tl.where(too_large > 0, float("inf"), unit), mask=inside)
    tl.store(errors + row, too_large.to(tl.int64), mask=inside)


@triton.jit
def _round_up_bf16(x):
    """The smallest bfloat16 not below a non-negative float32, as float32."""
    bits = x.to(tl.int32, bitcast=True)
    return (((bits + 0xFFFF) >> 16) << 16).to(tl.float32, bitcast=True)
