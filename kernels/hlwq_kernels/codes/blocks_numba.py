"""Blocks and rows in numba: the parts of the CPU encoder and decoder.

`order` is a tuple of log2(n) zeros. Its length is part of its type, so the block size n = 1 << len(order) is a constant
to the compiler. The inner loops vectorize without remainders, which makes them 1.5x as fast, and the compiled code can
be cached. The scale search takes most of the time: 30 scales times one table look-up per weight. Splitting it into a
loop that vectorizes (scale, clamp, convert) and one that gathers makes it another 1.4x as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from .tables import HALF_STEP, LARGEST, OCTAVE, SEARCH_HIGH, SEARCH_LOW, SMALLEST

f32 = np.float32
_LARGEST, _SMALLEST, _HALF_STEP, _HEADROOM = f32(LARGEST), f32(SMALLEST), f32(HALF_STEP), f32(OCTAVE[SEARCH_HIGH])
CANDIDATES = SEARCH_HIGH - SEARCH_LOW + 2


def jit(function: Callable[..., Any]) -> Any:
    """Compile to run without the GIL; cached on disk where a folder can be written."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


@jit
def round_up_bf16(x):  # type: ignore[no-untyped-def]
    """Return the smallest bfloat16 not below a non-negative float32, as float32."""
    bits = np.float32(x).view(np.uint32)
    return np.uint32((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)


@jit
def _round_fp16(x):  # type: ignore[no-untyped-def]
    """Return the nearest float16 (ties to even) of a non-negative float32, as float32."""
    if x >= f32(65520.0):
        return f32(np.inf)
    if x < f32(2.0**-14):
        return (x + f32(0.5)) - f32(0.5)
    bits = np.float32(x).view(np.uint32)
    bits = bits + np.uint32(0x0FFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    return np.uint32(bits & np.uint32(0xFFFFE000)).view(np.float32)


@jit
def step_below(steps, ratio):  # type: ignore[no-untyped-def]
    """Return the largest k with steps[k] <= ratio."""
    low, high = 0, 256
    while high - low > 1:
        middle = (low + high) // 2
        if steps[middle] <= ratio:
            low = middle
        else:
            high = middle
    return low


@jit
def row_range(bits):  # type: ignore[no-untyped-def]
    """Return whether all are finite and below 2^120, whether any is at least 2^-110, and the largest one's exponent.

    `bits` are the bits of float32 weights.
    """
    largest = np.uint32(0)
    for b in bits:
        largest = max(largest, b & np.uint32(0x7FFFFFFF))
    x = np.uint32(largest).view(np.float32)
    return x < _LARGEST, x >= _SMALLEST, np.int32(largest >> np.uint32(23)) - 127


@jit
def power_of_two(exponent):  # type: ignore[no-untyped-def]
    """Return 2^exponent, exactly."""
    return np.uint32((exponent + 127) << 23).view(np.float32)


@jit
def pack_row(codes, widths, packed):  # type: ignore[no-untyped-def]
    """Pack one row, as `planes.pack_codes` does."""
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


@jit
def _tree_sum(e, order):  # type: ignore[no-untyped-def]
    """Sum `e` in the order of `hadamard.tree_sum`; overwrites it."""
    h = (1 << len(order)) // 2
    while h >= 8:
        for i in range(h):
            e[i] = e[i] + e[i + h]
        h //= 2
    return ((e[0] + e[4]) + (e[2] + e[6])) + ((e[1] + e[5]) + (e[3] + e[7]))


@jit
def rotate(z, order):  # type: ignore[no-untyped-def]
    """Rotate one block in place, as `hadamard.hadamard` does."""
    n = 1 << len(order)
    h = 1
    while h < n:
        for start in range(0, n, 2 * h):
            for i in range(start, start + h):
                a, b = z[i], z[i + h]
                z[i] = a + b
                z[i + h] = a - b
        h *= 2


@jit
def measure(row, down, inverse_root, inverse_outermost, order, z, energy, outermost, work):  # type: ignore[no-untyped-def]
    """Rotate the blocks of a row into z; return the base."""
    n = 1 << len(order)
    base = f32(0.0)
    for b in range(energy.size):
        block = z[b * n : b * n + n]
        for i in range(min(n, row.size - b * n)):
            block[i] = row[b * n + i] * down
        for i in range(row.size - b * n, n):
            block[i] = f32(0.0)
        rotate(block, order)
        largest = f32(0.0)
        for i in range(n):
            block[i] = block[i] * inverse_root
            work[i] = block[i] * block[i]
            largest = max(largest, abs(block[i]))
        energy[b] = _tree_sum(work, order)
        outermost[b] = largest * inverse_outermost
        base = max(base, max(np.sqrt(energy[b] / f32(n)) * _HEADROOM, outermost[b]))
    return round_up_bf16(base)


@jit
def log8_candidates(energy, outermost, base, search, steps, order, stored_scales, scales):  # type: ignore[no-untyped-def]
    """List the `log8` scales to try for a block, as stored and decoded; return how many."""
    rms = np.sqrt(energy / f32(1 << len(order)))
    count = 1
    if search:
        count = CANDIDATES
        middle = step_below(steps, rms / base)
        for j in range(count - 1):
            stored_scales[j] = min(max(middle + SEARCH_LOW + j, 1), 255)
        stored_scales[count - 1] = max(step_below(steps, outermost / base), 1)
    else:
        stored_scales[0] = max(step_below(steps, rms * _HALF_STEP / base), 1)
    for j in range(count):
        scales[j] = base * steps[np.int32(stored_scales[j])]
    return count


@jit
def fp16_candidates(energy, outermost, up, down, search, factors, root, inverse_root, stored_scales, scales):  # type: ignore[no-untyped-def]
    """List the `fp16` scales to try for a block, as stored and decoded; return how many."""
    norm = np.sqrt(energy)
    count = 1
    stored_scales[0] = norm
    if search:
        count = CANDIDATES
        for j in range(count - 1):
            stored_scales[j] = norm * factors[j]
        stored_scales[count - 1] = outermost * root
    for j in range(count):
        stored_scales[j] = _round_fp16(stored_scales[j] * up)
        scales[j] = stored_scales[j] * down * inverse_root
    return count


@jit
def choose(z, scales, count, per_unit, values, order, magnitude, error, index):  # type: ignore[no-untyped-def]
    """Return the index of the first candidate scale of least error."""
    n = 1 << len(order)
    top = f32(values.size - 1)
    best, best_index = f32(np.inf), 0
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
        total = _tree_sum(error, order) * (s * s)
        if total < best:
            best, best_index = total, t
    return best_index


@jit
def code(z, s, per_unit, cell_codes, boundaries, centroids, order, codes, error, index):  # type: ignore[no-untyped-def]
    """Quantize a block with scale s; return the squared error."""
    n = 1 << len(order)
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
    return _tree_sum(error, order) * (s * s)
