"""The decoder compiled for the CPU by numba: the values of the reference."""

from __future__ import annotations

import numpy as np
import torch

from ..codes import bits_of, block_scales, plane_widths
from ..codes.blocks_numba import f32, jit, rotate


@jit
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


@jit
def _decode(packed, order, widths, scales, centroids, out):  # type: ignore[no-untyped-def]
    n = 1 << len(order)
    rows, columns = out.shape
    blocks = scales.shape[1]
    codes, z = np.empty(blocks * n, np.uint8), np.empty(n, np.float32)
    for row in range(rows):
        _unpack_row(packed[row], widths, codes)
        for b in range(blocks):
            for i in range(n):
                z[i] = centroids[codes[b * n + i]]
            rotate(z, order)
            s = scales[row, b]
            for i in range(min(n, columns - b * n)):
                out[row, b * n + i] = z[i] * s


def decode_rows_numba(
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    columns: int,
) -> torch.Tensor:
    """Decode rows on the CPU in float32; see `decode_rows`."""
    bits = bits_of(centroids)
    s = block_scales(scales, base, block_size) * float(f32(block_size**-0.5))
    out = torch.empty(codes.shape[0], columns, dtype=torch.float32)
    order = (0,) * (block_size.bit_length() - 1)
    _decode(
        codes.contiguous().numpy(),
        order,
        np.array(plane_widths(bits)),
        s.contiguous().numpy(),
        centroids.numpy(),
        out.numpy(),
    )
    return out
