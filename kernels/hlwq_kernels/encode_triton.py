"""The encoder for CUDA devices, in Triton: the bytes of the torch twin.

Two kernels. `_rows_kernel` reads the weights twice, the second time from a cache: for the largest weight of each row,
then for the energies and the base. `_blocks_kernel` reads them once more, searches the scale, codes and packs; it knows
nothing of rows but their base and exponent, so that a matrix of any shape fills its threads.

Fused multiply-adds are forbidden by a launch option; square roots and divisions are asked for in their correctly
rounded form. What Triton may round otherwise decides nothing: log2 makes a guess that the table corrects, and floor may
take a denormal for zero, which lies beside the boundary at zero and is then compared with it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from .blocks_triton import LANE, fold, load_block, power_of_two, rotate
from .device import current_device
from .encode import EncodedRows, ScaleKind
from .tables import (
    ERROR_UNIT,
    HALF_STEP,
    LARGEST,
    OCTAVE,
    SEARCH_FACTORS,
    SEARCH_HIGH,
    SEARCH_LOW,
    SMALLEST,
    CodeTables,
    scale_steps_on,
)

_THREADS, _ROWS, _ACROSS = 128, 4, 16

_LARGEST = tl.constexpr(LARGEST)
_SMALLEST = tl.constexpr(SMALLEST)
_HEADROOM = tl.constexpr(float(OCTAVE[SEARCH_HIGH]))
_HALF_STEP = tl.constexpr(HALF_STEP)
_SEARCH_LOW = tl.constexpr(SEARCH_LOW)
_FACTORS = tl.constexpr(len(SEARCH_FACTORS))
_ERROR_UNIT = tl.constexpr(ERROR_UNIT)
_NOT_CODED = tl.constexpr(-1000)
"""In place of the exponent of a row that is coded as zeros: too small, or not finite."""


@triton.jit(do_not_specialize=["rows", "blocks"])
def _rows_kernel(
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
    largest_base = round_up_bf16(tl.max(base.reshape(ROWS, ACROSS), axis=1))
    too_large = tl.max(overflow.reshape(ROWS, ACROSS), axis=1)
    unit = power_of_two(exponent).to(tl.float64)
    unit = unit * unit * (1.0 / _ERROR_UNIT)
    energy_sum = tl.sum(energy.reshape(ROWS, ACROSS), axis=1).to(tl.float64) * unit
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    tl.store(exponents + row, tl.where(coded, exponent, _NOT_CODED), mask=inside)
    tl.store(bases + row, largest_base, mask=inside)
    if LOG8:
        tl.store(stored_bases + row, (largest_base * power_of_two(exponent)).to(tl.bfloat16), mask=inside)
    tl.store(energies + row, tl.where(finite, energy_sum, float("nan")), mask=inside)
    tl.store(units + row, tl.where(too_large > 0, float("inf"), unit), mask=inside)
    tl.store(errors + row, too_large.to(tl.int64), mask=inside)


@triton.jit
def normalized(x, down, inverse_root, GROUPS: tl.constexpr):
    """Rotated blocks of rows whose largest weight was scaled into [1, 2)."""
    scaled = ()
    for g in tl.static_range(GROUPS):
        scaled = scaled + (x[g] * down[:, None],)
    turned = rotate(scaled, GROUPS)
    z = ()
    for g in tl.static_range(GROUPS):
        z = z + (turned[g] * inverse_root,)
    return z


@triton.jit
def tree_energy(z, GROUPS: tl.constexpr):
    """Each block's sum of squares."""
    squares = ()
    for g in tl.static_range(GROUPS):
        squares = squares + (z[g] * z[g],)
    return fold(squares, GROUPS)


@triton.jit
def magnitude(z, GROUPS: tl.constexpr):
    """Each block's largest magnitude."""
    largest = tl.abs(z[0])
    for g in tl.static_range(1, GROUPS):
        largest = tl.maximum(largest, tl.abs(z[g]))
    return tl.max(largest, axis=1)


@triton.jit
def round_up_bf16(x):
    """The smallest bfloat16 not below a non-negative float32, as float32."""
    bits = x.to(tl.int32, bitcast=True)
    return (((bits + 0xFFFF) >> 16) << 16).to(tl.float32, bitcast=True)


@triton.jit
def step_below(steps, ratio):
    """The largest k with steps[k] <= ratio: a guess that is off by one at most, then the table decides."""
    guess = tl.floor(tl.log2(tl.maximum(ratio, 1e-3)) * 32.0).to(tl.int32) + 255
    k = tl.minimum(tl.maximum(guess, 0), 255)
    k -= (tl.load(steps + k) > ratio).to(tl.int32)
    return k + (tl.load(steps + k + 1) <= ratio).to(tl.int32)


@triton.jit
def try_scale(z, s, values, per_unit, top, GROUPS: tl.constexpr):
    """The error of coding against the scale `s`, by cells; zero scales give anything."""
    inverse = tl.where(s > 0, tl.div_rn(per_unit, s), 0.0)[:, None]
    squares = ()
    for g in tl.static_range(GROUPS):
        v = tl.abs(z[g]) * inverse
        d = v - tl.load(values + tl.minimum(v, top).to(tl.int32))
        squares = squares + (d * d,)
    return fold(squares, GROUPS) * (s * s)


@triton.jit(do_not_specialize=["total", "blocks", "row_bytes", "cells"])
def _blocks_kernel(
    weight, total, blocks, row_bytes, root, inverse_root, inverse_outermost, per_unit, cells,
    exponents, bases, steps, factors, centroids, boundaries, cell_codes, cell_values,
    packed, stored, errors,
    BITS: tl.constexpr, GROUPS: tl.constexpr, THREADS: tl.constexpr, LOG8: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    """Per block: scale, codes, error."""
    n: tl.constexpr = GROUPS * LANE
    block = tl.program_id(0) * THREADS + tl.arange(0, THREADS)
    inside = block < total
    row = block // blocks
    exponent = tl.load(exponents + row, mask=inside, other=_NOT_CODED)
    coded = exponent != _NOT_CODED
    exponent = tl.where(coded, exponent, 0)
    base = tl.load(bases + row, mask=inside, other=0.0)
    x = load_block(weight, block.to(tl.int64) * n, coded, GROUPS)
    z = normalized(x, power_of_two(-exponent), inverse_root, GROUPS)
    energy = tree_energy(z, GROUPS)
    outermost = magnitude(z, GROUPS) * inverse_outermost
    if LOG8:
        rms = tl.sqrt_rn(energy * (1.0 / n))
        divisor = tl.where(base > 0, base, 1.0)
        if SEARCH:
            middle = step_below(steps, tl.div_rn(rms, divisor))
            last = step_below(steps, tl.div_rn(outermost, divisor))
        else:
            middle = step_below(steps, tl.div_rn(rms * _HALF_STEP, divisor)) - _SEARCH_LOW
            last = middle
        first_mark = tl.minimum(tl.maximum(middle + _SEARCH_LOW, 1), 255).to(tl.float32)
        first = base * tl.load(steps + first_mark.to(tl.int32))
    else:
        norm, down = tl.sqrt_rn(energy), power_of_two(-exponent)
        up = power_of_two(exponent)
        wanted = norm
        if SEARCH:
            wanted = norm * tl.load(factors)
        first_mark = (wanted * up).to(tl.float16).to(tl.float32)
        first = first_mark * down * inverse_root
    mark, s = first_mark, first
    if SEARCH:
        best = tl.full((THREADS,), float("inf"), tl.float32)
        top = (cells - 1).to(tl.float32)
        for j in range(_FACTORS + 1):
            if LOG8:
                k = tl.where(j < _FACTORS, middle + _SEARCH_LOW + j, last)
                other = tl.minimum(tl.maximum(k, 1), 255).to(tl.float32)
                t = base * tl.load(steps + other.to(tl.int32))
            else:
                wanted = tl.where(j < _FACTORS, norm * tl.load(factors + j), outermost * root)
                other = (wanted * up).to(tl.float16).to(tl.float32)
                t = other * down * inverse_root
            error = try_scale(z, t, cell_values, per_unit, top, GROUPS)
            better = (error < best) & (t > 0)
            best, mark, s = tl.where(better, error, best), tl.where(better, other, mark), tl.where(better, t, s)
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
    error = fold(squares, GROUPS) * (s * s)
    kept = (error < energy) & (s > 0)
    mark, error = tl.where(kept, mark, 0.0), tl.where(kept, error, energy)
    if LOG8:
        tl.store(stored + block, mark.to(tl.int32).to(tl.uint8), mask=inside)
    else:
        tl.store(stored + block, mark.to(tl.float16), mask=inside)
    tl.atomic_add(errors + row, (error * _ERROR_UNIT).to(tl.int64), mask=inside, sem="relaxed")
    place = packed + row.to(tl.int64) * row_bytes
    column = (block - row * blocks) * n
    store_planes(place, column, codes, kept, inside, blocks * n, BITS, GROUPS)


@triton.jit
def store_planes(place, column, codes, kept, inside, padded, BITS: tl.constexpr, GROUPS: tl.constexpr):
    """`planes.pack_codes`, a block at a time."""
    if BITS >= 4:
        _store_plane(place, column, codes, kept, inside, 0, 4, GROUPS)
    if BITS == 8:
        _store_plane(place + padded // 2, column, codes, kept, inside, 4, 4, GROUPS)
    if BITS == 6 or BITS == 7:
        _store_plane(place + padded // 2, column, codes, kept, inside, 4, 2, GROUPS)
    if BITS < 4:
        _store_plane(place, column, codes, kept, inside, 0, 2, GROUPS)
    if BITS == 3:
        _store_plane(place + padded // 4, column, codes, kept, inside, 2, 1, GROUPS)
    if BITS == 5:
        _store_plane(place + padded // 2, column, codes, kept, inside, 4, 1, GROUPS)
    if BITS == 7:
        _store_plane(place + padded // 4 * 3, column, codes, kept, inside, 6, 1, GROUPS)


@triton.jit
def _store_plane(plane, column, codes, kept, inside, SHIFT: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr):
    per_word: tl.constexpr = 4 // WIDTH
    at = (plane + column * WIDTH // 8).to(tl.pointer_type(tl.int32))
    i = tl.arange(0, LANE)
    place = ((i & 3) * WIDTH + (i >> 2) * 16)[None, :]
    for w in tl.static_range(GROUPS // per_word):
        word = tl.zeros(column.shape, tl.int32)
        for h in tl.static_range(per_word):
            field = (codes[w * per_word + h] >> SHIFT) & ((1 << WIDTH) - 1)
            word |= tl.sum(field << place, axis=1) << (4 * WIDTH * h)
        tl.store(at + w, tl.where(kept, word, 0), mask=inside)


class _DeviceTables(NamedTuple):
    tables: CodeTables
    steps: torch.Tensor
    factors: torch.Tensor
    centroids: torch.Tensor
    boundaries: torch.Tensor
    cell_codes: torch.Tensor
    cell_values: torch.Tensor


@lru_cache(maxsize=32)
def _device_tables(centroids: bytes, device: torch.device) -> _DeviceTables:
    """The tables of a codebook on a device, copied there once."""
    t = CodeTables.from_centroids(np.frombuffer(centroids, dtype=np.float32).copy())
    arrays = (SEARCH_FACTORS, t.centroids, t.boundaries, t.cell_codes, t.cell_values)
    return _DeviceTables(t, scale_steps_on(device), *(torch.from_numpy(a).to(device) for a in arrays))


class _Coded(NamedTuple):
    """What the kernels write; `errors` counts units, and a unit's worth is that of its row."""

    codes: torch.Tensor
    scales: torch.Tensor
    base: torch.Tensor
    errors: torch.Tensor
    units: torch.Tensor
    energy: torch.Tensor


def encode_rows_triton(
    weight: torch.Tensor, tables: CodeTables, block_size: int, scale: ScaleKind, search: bool
) -> EncodedRows:
    """See `encode_rows`."""
    centroids, log8 = torch.from_numpy(tables.centroids), scale == "log8"
    codes, scales, base, error, energy = _encode_op(weight, centroids, block_size, log8, search)
    return EncodedRows(codes, scales, base if log8 else None, error, energy)


@torch.library.custom_op("hlwq::encode_rows", mutates_args=())
def _encode_op(
    weight: torch.Tensor, centroids: torch.Tensor, block_size: int, log8: bool, search: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The fields of EncodedRows; `centroids` is on the CPU, and only `log8` fills the base."""
    if weight.shape[1] == 0:
        raise ValueError("a row to encode has no columns")
    tables = _device_tables(centroids.numpy().tobytes(), weight.device)
    whole = _whole_blocks(weight, block_size)
    out = _empty(whole, tables.tables.bits, block_size, log8)
    if len(weight):
        with current_device(weight.device):
            _launch(whole, tables, block_size, log8, search, out)
    return out.codes, out.scales, out.base, out.errors * out.units, out.energy


@_encode_op.register_fake
def _(
    weight: torch.Tensor, centroids: torch.Tensor, block_size: int, log8: bool, search: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = weight.shape
    padded = -(-columns // block_size) * block_size
    whole = weight.new_empty((rows, padded))
    out = _empty(whole, centroids.shape[0].bit_length() - 1, block_size, log8)
    return out.codes, out.scales, out.base, out.units, out.energy


def _empty(whole: torch.Tensor, bits: int, block_size: int, log8: bool) -> _Coded:
    rows, padded = whole.shape
    return _Coded(
        codes=whole.new_empty((rows, padded * bits // 8), dtype=torch.uint8),
        scales=whole.new_empty((rows, padded // block_size), dtype=torch.uint8 if log8 else torch.float16),
        base=whole.new_empty((rows,), dtype=torch.bfloat16),
        errors=whole.new_empty((rows,), dtype=torch.int64),
        units=whole.new_empty((rows,), dtype=torch.float64),
        energy=whole.new_empty((rows,), dtype=torch.float64),
    )


def _launch(whole: torch.Tensor, tables: _DeviceTables, block_size: int, log8: bool, search: bool, out: _Coded) -> None:
    rows, blocks = out.scales.shape
    t, groups = tables.tables, block_size // LANE.value
    root, inverse_root = float(np.float32(block_size**0.5)), float(np.float32(block_size**-0.5))
    exponents = whole.new_empty((rows,), dtype=torch.int32)
    bases = whole.new_empty((rows,), dtype=torch.float32)
    _rows_kernel[(triton.cdiv(rows, _ROWS),)](
        whole, rows, blocks, inverse_root, t.inverse_outermost,
        exponents, bases, out.base, out.energy, out.units, out.errors,
        GROUPS=groups, ROWS=_ROWS, ACROSS=_ACROSS, LOG8=log8,
        num_warps=_ROWS * _ACROSS // 32, enable_fp_fusion=False,
    )  # fmt: skip
    _blocks_kernel[(triton.cdiv(rows * blocks, _THREADS),)](
        whole, rows * blocks, blocks, out.codes.shape[1], root, inverse_root, t.inverse_outermost,
        t.cells_per_unit, t.cells, exponents, bases, tables.steps, tables.factors, tables.centroids,
        tables.boundaries, tables.cell_codes, tables.cell_values, out.codes, out.scales, out.errors,
        BITS=t.bits, GROUPS=groups, THREADS=_THREADS, LOG8=log8, SEARCH=search,
        num_warps=_THREADS // 32, enable_fp_fusion=False,
    )  # fmt: skip


def _whole_blocks(weight: torch.Tensor, block_size: int) -> torch.Tensor:
    """The weight in a type and layout that the kernels load 16 bytes at a time; a copy only where it must be."""
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        weight = weight.to(torch.float32)
    padding = -weight.shape[1] % block_size
    if padding:
        weight = torch.nn.functional.pad(weight, (0, padding))
    weight = weight.contiguous()
    return weight if weight.data_ptr() % 16 == 0 else weight.clone()
