"""The reference of the decoder: the definition of its values."""

from __future__ import annotations

import numpy as np
import torch

from ..codes import bits_of, block_scales, hadamard, unpack_codes


def decode_rows_reference(
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    columns: int,
) -> torch.Tensor:
    """Decode rows in float32; see `decode_rows`. Sums come before the scale, so that no intermediate can overflow."""
    bits = bits_of(centroids)
    table = centroids.to(codes.device)
    s = block_scales(scales, base, block_size) * float(np.float32(block_size**-0.5))
    values = table[unpack_codes(codes, bits).to(torch.int32)].unflatten(1, (-1, block_size))
    return (hadamard(values) * s[..., None]).flatten(1)[:, :columns].contiguous()
