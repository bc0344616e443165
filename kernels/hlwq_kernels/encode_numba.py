"""The encoder compiled for the CPU by numba: the bytes of the torch twin, a row at a time, without the GIL.

Each function is made for one block size: a constant trip count lets the inner loops vectorize without remainders,
worth 1.5x. The scale search is where the time goes, 30 scales times one table look-up per weight; splitting it into a
loop that vectorizes (scale, clamp, convert) and one that gathers is worth another 1.4x.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit

from .encode import EncodedRows, ScaleKind
from .planes import plane_widths
from .tables import (
    HALF_STEP,
    LARGEST,
    OCTAVE,
    SCALE_STEPS,
    SEARCH_FACTORS,
    SEARCH_HIGH,
    SEARCH_LOW,
    SMALLEST,
    CodeTables,
)

f32 = np.float32
_LARGEST, _SMALLEST, _HALF_STEP, _HEADROOM = f32(LARGEST), f32(SMALLEST), f32(HALF_STEP), f32(OCTAVE[SEARCH_HIGH])
_CANDIDATES = SEARCH_HIGH - SEARCH_LOW + 2
_jit = njit(nogil=True, cache=True)


@_jit
def _round_up_bf16(x):  # type: ignore[no-untyped-def]
    bits = np.float32(x).view(np.uint32)
    return np.uint32((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)


@_jit
def _round_fp16(x):  # type: ignore[no-untyped-def]
    """The nearest float16 (ties to even) of a non-negative float32, as float32."""
    if x >= f32(65520.0):
        return f32(np.inf)
    if x < f32(2.0**-14):
        return (x + f32(0.5)) - f32(0.5)
    bits = np.float32(x).view(np.uint32)
    bits = bits + np.uint32(0x0FFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    return np.uint32(bits & np.uint32(0xFFFFE000)).view(np.float32)


@_jit
def _step_below(steps, ratio):  # type: ignore[no-untyped-def]
    """The largest k with steps[k] <= ratio."""
    low, high = 0, 256
    while high - low > 1:
        middle = (low + high) // 2
        if steps[middle] <= ratio:
            low = middle
        else:
            high = middle
    return low


@_jit
def _row_range(bits):  # type: ignore[no-untyped-def]
    """(is every weight below 2^120 and finite, does any reach 2^-110, exponent of the largest), from the float bits."""
    largest = np.uint32(0)
    for b in bits:
        largest = max(largest, b & np.uint32(0x7FFFFFFF))
    x = np.uint32(largest).view(np.float32)
    return x < _LARGEST, x >= _SMALLEST, np.int32(largest >> np.uint32(23)) - 127


@_jit
def _power_of_two(exponent):  # type: ignore[no-untyped-def]
    return np.uint32((exponent + 127) << 23).view(np.float32)


@_jit
def _pack_row(codes, widths, packed):  # type: ignore[no-untyped-def]
    at, shift = 0, 0
    words = packed.view(np.uint32)
    for width in widths:
        mask, per_half = (1 << width) - 1, 16 // width
        for start in range(0, codes.size, 2 * per_half):
            word = np.uint32(0)
            for r in range(per_half):
                i = start + ((r >> 2) << 3) + (r & 3)
                low = np.uint32((codes[i] >> shift) & mask)
                high = np.uint32((codes[i + 4] >> shift) & mask)
                word |= (low | (high << np.uint32(16))) << np.uint32(r * width)
            words[at] = word
            at += 1
        shift += width


@lru_cache(maxsize=None)
def _tree_sum(n: int) -> Any:
    @_jit
    def tree_sum(e):  # type: ignore[no-untyped-def]
        """Folds `e` in place, in the order of `hadamard.tree_sum`."""
        h = n // 2
        while h >= 8:
            for i in range(h):
                e[i] = e[i] + e[i + h]
            h //= 2
        return ((e[0] + e[4]) + (e[2] + e[6])) + ((e[1] + e[5]) + (e[3] + e[7]))

    return tree_sum


@lru_cache(maxsize=None)
def _rotate(n: int) -> Any:
    inverse_root = f32(n**-0.5)

    @_jit
    def rotate(z):  # type: ignore[no-untyped-def]
        h = 1
        while h < n:
            for start in range(0, n, 2 * h):
                for i in range(start, start + h):
                    a, b = z[i], z[i + h]
                    z[i] = a + b
                    z[i + h] = a - b
            h *= 2
        for i in range(n):
            z[i] = z[i] * inverse_root

    return rotate


@lru_cache(maxsize=None)
def _measure(n: int) -> Any:
    tree_sum, rotate = _tree_sum(n), _rotate(n)

    @_jit
    def measure(row, down, inverse_outermost, z, energy, outermost, work):  # type: ignore[no-untyped-def]
        """Rotate a row's blocks into z; returns the base."""
        base = f32(0.0)
        for b in range(energy.size):
            block = z[b * n : b * n + n]
            for i in range(min(n, row.size - b * n)):
                block[i] = row[b * n + i] * down
            for i in range(row.size - b * n, n):
                block[i] = f32(0.0)
            rotate(block)
            largest = f32(0.0)
            for i in range(n):
                work[i] = block[i] * block[i]
                largest = max(largest, abs(block[i]))
            energy[b] = tree_sum(work)
            outermost[b] = largest * inverse_outermost
            base = max(base, max(np.sqrt(energy[b] / f32(n)) * _HEADROOM, outermost[b]))
        return _round_up_bf16(base)

    return measure


@lru_cache(maxsize=None)
def _candidates(n: int) -> Any:
    inverse_root, root = f32(n**-0.5), f32(n**0.5)

    @_jit
    def log8(energy, outermost, base, search, steps, marks, scales):  # type: ignore[no-untyped-def]
        rms = np.sqrt(energy / f32(n))
        count = 1
        if search:
            count = _CANDIDATES
            middle = _step_below(steps, rms / base)
            for j in range(count - 1):
                marks[j] = min(max(middle + SEARCH_LOW + j, 1), 255)
            marks[count - 1] = max(_step_below(steps, outermost / base), 1)
        else:
            marks[0] = max(_step_below(steps, rms * _HALF_STEP / base), 1)
        for j in range(count):
            scales[j] = base * steps[np.int32(marks[j])]
        return count

    @_jit
    def fp16(energy, outermost, up, down, search, factors, marks, scales):  # type: ignore[no-untyped-def]
        norm = np.sqrt(energy)
        count = 1
        marks[0] = norm
        if search:
            count = _CANDIDATES
            for j in range(count - 1):
                marks[j] = norm * factors[j]
            marks[count - 1] = outermost * root
        for j in range(count):
            marks[j] = _round_fp16(marks[j] * up)
            scales[j] = marks[j] * down * inverse_root
        return count

    return log8, fp16


@lru_cache(maxsize=None)
def _choose(n: int) -> Any:
    tree_sum = _tree_sum(n)

    @_jit
    def choose(z, scales, count, per_unit, values, magnitude, error, index):  # type: ignore[no-untyped-def]
        """The place of the first candidate scale of least error."""
        top = f32(values.size - 1)
        best, chosen = f32(np.inf), 0
        for i in range(n):
            magnitude[i] = abs(z[i])
        for t in range(count):
            s = scales[t]
            if s == f32(0.0):
                continue
            inverse = per_unit / s
            for i in range(n):
                v = magnitude[i] * inverse
                error[i] = v
                index[i] = np.int32(min(v, top))
            for i in range(n):
                d = error[i] - values[index[i]]
                error[i] = d * d
            total = tree_sum(error) * (s * s)
            if total < best:
                best, chosen = total, t
        return chosen

    return choose


@lru_cache(maxsize=None)
def _code(n: int) -> Any:
    tree_sum = _tree_sum(n)

    @_jit
    def code(z, s, per_unit, cell_codes, boundaries, centroids, codes, error, index):  # type: ignore[no-untyped-def]
        """Codes of one block against scale s; returns the squared error."""
        inverse = f32(1.0) / s
        cells, last = f32(cell_codes.size // 2), f32(cell_codes.size - 1)
        for i in range(n):
            u = z[i] * inverse
            error[i] = u
            index[i] = np.int32(min(max(np.floor(u * per_unit) + cells, f32(0.0)), last))
        for i in range(n):
            c = cell_codes[index[i]]
            c += error[i] > boundaries[c]
            codes[i] = c
            d = error[i] - centroids[c]
            error[i] = d * d
        return tree_sum(error) * (s * s)

    return code


@lru_cache(maxsize=None)
def _encoder(n: int) -> Any:
    measure, choose, code = _measure(n), _choose(n), _code(n)
    log8_candidates, fp16_candidates = _candidates(n)

    @_jit
    def encode(  # type: ignore[no-untyped-def]
        weight, log8, search, widths, steps, factors, centroids, boundaries, per_unit, cell_codes, cell_values,
        inverse_outermost, packed, stored, bases, errors, energies,
    ):  # fmt: skip
        rows = weight.shape[0]
        blocks = stored.shape[1]
        z, codes = np.empty(blocks * n, f32), np.empty(blocks * n, np.uint8)
        energy, outermost = np.empty(blocks, f32), np.empty(blocks, f32)
        magnitude, work, index = np.empty(n, f32), np.empty(n, f32), np.empty(n, np.int32)
        scales, marks = np.empty(_CANDIDATES, f32), np.empty(_CANDIDATES, f32)
        for row in range(rows):
            finite, some, exponent = _row_range(weight[row].view(np.uint32))
            codes[:] = 0
            stored[row, :] = f32(0.0)
            bases[row], errors[row], energies[row] = f32(0.0), 0.0, 0.0 if finite else np.nan
            if finite and some:
                up, down = _power_of_two(exponent), _power_of_two(-exponent)
                unit = np.float64(up) * np.float64(up)
                base = measure(weight[row], down, inverse_outermost, z, energy, outermost, work)
                bases[row] = base * up
                for b in range(blocks):
                    energies[row] += energy[b] * unit
                    if log8:
                        count = log8_candidates(energy[b], outermost[b], base, search, steps, marks, scales)
                    else:
                        count = fp16_candidates(energy[b], outermost[b], up, down, search, factors, marks, scales)
                        if np.isinf(marks[0]):
                            errors[row] = np.inf
                    block, chosen, error = z[b * n : b * n + n], 0, f32(np.inf)
                    if search:
                        chosen = choose(block, scales, count, per_unit, cell_values, magnitude, work, index)
                    if scales[chosen] > f32(0.0):
                        error = code(
                            block, scales[chosen], per_unit, cell_codes, boundaries, centroids,
                            codes[b * n : b * n + n], work, index,
                        )  # fmt: skip
                    if error < energy[b]:
                        stored[row, b] = marks[chosen]
                    else:
                        codes[b * n : b * n + n] = 0
                        error = energy[b]
                    errors[row] += error * unit
            _pack_row(codes, widths, packed[row])

    return encode


def encode_rows_numba(
    weight: torch.Tensor, tables: CodeTables, block_size: int, scale: ScaleKind, search: bool
) -> EncodedRows:
    """See `encode_rows`."""
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    log8 = scale == "log8"
    codes = torch.empty(rows, blocks * block_size * tables.bits // 8, dtype=torch.uint8)
    scales = torch.empty(rows, blocks, dtype=torch.float32)
    base = torch.empty(rows, dtype=torch.float32)
    error, energy = torch.empty(rows, dtype=torch.float64), torch.empty(rows, dtype=torch.float64)
    _encoder(block_size)(
        weight.to(torch.float32).contiguous().numpy(), log8, search, plane_widths(tables.bits),
        SCALE_STEPS, SEARCH_FACTORS, tables.centroids, tables.boundaries, f32(tables.cells_per_unit),
        tables.cell_codes, tables.cell_values, f32(tables.inverse_outermost),
        codes.numpy(), scales.numpy(), base.numpy(), error.numpy(), energy.numpy(),
    )  # fmt: skip
    return EncodedRows(
        codes=codes,
        scales=scales.to(torch.uint8 if log8 else torch.float16),
        base=base.to(torch.bfloat16) if log8 else None,
        error=error,
        energy=energy,
    )
