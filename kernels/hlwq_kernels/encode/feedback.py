"""Encode rows of weights with error feedback: later columns make up for the errors of earlier ones.

The loss is that of the layer's outputs, d'Hd for a row's error d, with the moments H of the layer's inputs. This is
the order of GPTQ (arXiv 2210.17323) in the rotated basis, with the scale of a block chosen by its loss:

1. Rows are normalized and rotated as `encode_rows` does it. The base leaves more headroom: it is the largest of
   (rms * 2^(24/32), max|z| / c_max) over the blocks of the row, rounded up to bf16.
2. Blocks are coded in order, from what feedback has left of them. The scale candidates are those of `encode_rows`, of
   what is left now; the last is zero, which drops the block.
3. Each candidate codes the whole block, column by column: q = the nearest value, e = w - q, and every later column i
   of the block loses e V[j, i]. Its loss is the sum of cost[j] e^2. The first candidate of least loss wins.
4. Every later block loses E V[block, later], where E are the errors of the winner.

Rows do not depend on each other. All backends follow this order, but each has its own precision: one code that differs
changes all later ones of its row. So CPU and GPU agree in the loss, not in the bytes.
"""

from __future__ import annotations

import torch

from ..codes import CodeTables
from ..common import supports_nvrtc
from .feedback_types import LARGEST_BLOCK, FeedbackFactor, FeedbackRows


def encode_feedback(
    weight: torch.Tensor,
    factor: FeedbackFactor,
    tables: CodeTables,
    block_size: int,
    search: bool = True,
    rows_per_warp: int = 1,
) -> FeedbackRows:
    """Encode weights with `log8` scales and error feedback.

    Args:
        weight: (rows, columns) or (experts, rows, columns), of any floating dtype.
        factor: of the moments of the inputs, with the same leading dimensions, on the same device.
        tables: the codebook.
        block_size: a power of two from 32 to 256.
        search: try 31 scales per block and keep the best, rather than two.
        rows_per_warp: rows that a warp of the CUDA kernel codes at once, 1 or 2; it changes the speed alone.
    """
    if weight.dim() == 2:
        stacked = FeedbackFactor(factor.upper[None], factor.cost[None])
        coded = encode_feedback(weight[None], stacked, tables, block_size, search, rows_per_warp)
        return FeedbackRows(*(field[0] for field in coded))
    if supports_nvrtc(weight.device) and block_size <= LARGEST_BLOCK:
        from .feedback_cuda import encode_feedback_cuda

        return encode_feedback_cuda(weight, factor, tables, block_size, search, rows_per_warp)
    if weight.device.type == "cpu":
        try:
            from .feedback_numba import encode_feedback_numba as encode
        except ImportError:  # no numba for this Python
            from .feedback_reference import encode_feedback_reference as encode
    else:
        from .feedback_reference import encode_feedback_reference as encode
    return encode(weight, factor, tables, block_size, search)
