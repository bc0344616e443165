"""The decoder compiled for the CPU by numba: the values of the torch twin."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch

from .decode import block_scales
from .planes import plane_widths

f32 = np.float32
_jit = numba.njit(nogil=True, cache=True)


@_jit
def _unpack_row(packed, widths, codes):  # type: ignore[no-untyped-def]
    at, shift = 0, 0
    words = packed.view(np.uint32)
    codes[:] = 0
    for width in widths:
        mask, per_half = np.uint32((1 << width) - 1), 16 // width
        for start in range(0, codes.size, 2 * per_half):
            word = words[at]
            at += 1
            for r in range(per_half):
                i = start + ((r >> 2) << 3) + (r & 3)
                pair = word >> np.uint32(r * width)
                codes[i] |= (pair & mask) << np.uint32(shift)
                codes[i + 4] |= ((pair >> np.uint32(16)) & mask) << np.uint32(shift)
        shift += width


@lru_cache(maxsize=None)
def _compiled(n: int) -> Any:
    @_jit
    def decode(packed, widths, scales, centroids, out):  # type: ignore[no-untyped-def]
        rows, columns = out.shape
        blocks = scales.shape[1]
        codes = np.empty(blocks * n, np.uint8)
        z = np.empty(n, f32)
        for row in range(rows):
            _unpack_row(packed[row], widths, codes)
            for b in range(blocks):
                for i in range(n):
                    z[i] = centroids[codes[b * n + i]]
                h = 1
                while h < n:
                    for start in range(0, n, 2 * h):
                        for i in range(start, start + h):
                            x, y = z[i], z[i + h]
                            z[i] = x + y
                            z[i + h] = x - y
                    h *= 2
                s = scales[row, b]
                for i in range(b * n, min((b + 1) * n, columns)):
                    out[row, i] = z[i - b * n] * s

    return decode


def decode_rows_numba(
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    columns: int,
) -> torch.Tensor:
    """See `decode_rows`."""
    bits = centroids.numel().bit_length() - 1
    s = block_scales(scales, base, block_size) * float(f32(block_size**-0.5))
    out = torch.empty(codes.shape[0], columns, dtype=torch.float32)
    _compiled(block_size)(
        codes.contiguous().numpy(), plane_widths(bits), s.contiguous().numpy(), centroids.numpy(), out.numpy()
    )
    return out
