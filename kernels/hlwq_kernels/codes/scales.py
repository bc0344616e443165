"""The scales of blocks, decoded."""

from __future__ import annotations

import numpy as np
import torch

from .tables import SCALE_STEPS


def block_scales(scales: torch.Tensor, base: torch.Tensor | None, block_size: int) -> torch.Tensor:
    """Return the float32 scales s of blocks.

    Args:
        scales: uint8 or float16 (..., blocks).
        base: bfloat16 (...) where scales are uint8, else None.
        block_size: n; a float16 scale is the block's L2 norm, sqrt(n) times s.
    """
    if base is None:
        return scales.to(torch.float32) * float(np.float32(block_size**-0.5))
    steps = torch.from_numpy(SCALE_STEPS).to(scales.device)
    return base.to(torch.float32)[..., None] * steps[scales.to(torch.int32)]
