"""Decode rows: unpack the codes, look the centroids up, rotate back, scale."""

from __future__ import annotations

import numpy as np
import torch

from .hadamard import hadamard
from .planes import unpack_codes
from .tables import SCALE_STEPS


def block_scales(scales: torch.Tensor, base: torch.Tensor | None, block_size: int) -> torch.Tensor:
    """The float32 scales s of blocks, from what is stored.

    Args:
        scales: uint8 or float16 (..., blocks).
        base: bfloat16 (...) where scales are uint8, else None.
        block_size: n; a float16 scale is the block's L2 norm, sqrt(n) times s.
    """
    if base is None:
        return scales.to(torch.float32) * float(np.float32(block_size**-0.5))
    steps = torch.from_numpy(SCALE_STEPS).to(scales.device)
    return base.to(torch.float32)[..., None] * steps[scales.to(torch.int32)]


def decode_rows(
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    columns: int,
) -> torch.Tensor:
    """Decode what `encode_rows` made.

    Args:
        codes: uint8 (rows, padded * bits / 8).
        scales: uint8 or float16 (rows, padded / block_size).
        base: bfloat16 (rows,), or None with float16 scales.
        centroids: float32 (2^bits,).
        block_size: n.
        columns: columns of the weight, at most `padded`.

    Returns:
        float32 (rows, columns).
    """
    if codes.device.type == "cpu":
        try:
            from .decode_numba import decode_rows_numba as decode
        except ImportError:  # no numba for this Python: slower, same values
            decode = decode_rows_torch
    else:
        decode = decode_rows_torch
    return decode(codes, scales, base, centroids, block_size, columns)


def decode_rows_torch(
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    columns: int,
) -> torch.Tensor:
    """The torch twin of `decode_rows`; the sums come before the scale, so that nothing can overflow within."""
    bits = centroids.numel().bit_length() - 1
    table = centroids.to(codes.device)
    s = block_scales(scales, base, block_size) * float(np.float32(block_size**-0.5))
    values = table[unpack_codes(codes, bits).to(torch.int32)].unflatten(1, (-1, block_size))
    return (hadamard(values) * s[..., None]).flatten(1)[:, :columns].contiguous()
