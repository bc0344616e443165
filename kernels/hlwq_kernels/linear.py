"""y = x W^T from codes: rotate the activation instead of the weight, then multiply by scaled centroids.

H is symmetric and orthogonal, so x . (H v) = (H x) . v for every block: rotating one activation row costs n log n
additions once, where rotating the weight would cost that for every output row.
"""

from __future__ import annotations

import numpy as np
import torch

from .decode import block_scales
from .hadamard import hadamard
from .planes import unpack_codes

_TILE_WEIGHTS = 2**22


def rotate_activation(x: torch.Tensor, block_size: int) -> torch.Tensor:
    """Pad the last dimension to whole blocks and rotate each: (..., in) to (..., padded), same dtype.

    The butterflies run in float32, whatever the dtype.
    """
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % block_size))
    blocks = padded.to(torch.float32).reshape(*padded.shape[:-1], padded.shape[-1] // block_size, block_size)
    return (hadamard(blocks) * float(np.float32(block_size**-0.5))).reshape(padded.shape).to(x.dtype)


def coded_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
) -> torch.Tensor:
    """Multiply activations by a coded weight, a few of its rows decoded at a time.

    Args:
        x: (..., in), floating.
        codes: uint8 (out, padded * bits / 8).
        scales: uint8 or float16 (out, padded / block_size).
        base: bfloat16 (out,), or None with float16 scales.
        centroids: float32 (2^bits,), on the device of `codes`.
        block_size: n.

    Returns:
        (..., out), in the dtype of `x`.
    """
    bits = centroids.numel().bit_length() - 1
    rotated = rotate_activation(x, block_size)
    step = max(1, _TILE_WEIGHTS // rotated.shape[-1])
    parts = []
    for row in range(0, codes.shape[0], step):
        rows = slice(row, row + step)
        s = block_scales(scales[rows], None if base is None else base[rows], block_size)
        values = centroids[unpack_codes(codes[rows], bits).to(torch.int32)]
        tile = (values.reshape(*s.shape, block_size) * s[..., None]).flatten(1)
        parts.append(torch.nn.functional.linear(rotated, tile.to(x.dtype)))
    return torch.cat(parts, dim=-1)
