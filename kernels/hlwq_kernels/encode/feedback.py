"""Encode rows of weights with error feedback: later columns make up for the errors of earlier ones.

The loss is that of the layer's outputs, d'Hd for a row's error d, with the moments H of the layer's inputs. This is
the order of GPTQ (arXiv 2210.17323) in the rotated basis, with the scale of a block chosen by its loss:

1. Rows are normalized and rotated as `encode_rows` does it. The base leaves more headroom: it is the largest of
   (rms * 2^(24/32), max|z| / c_max) over the blocks of the row, rounded up to bf16.
2. Blocks are coded in order, from what feedback has left of them. The scale candidates are those of `encode_rows`, of
   what is left now; the last is zero, which drops the block.
3. Each candidate codes the whole block, column by column: q = the nearest value, e = w - q, and every later column i
   of the block loses e V[j, i]. Its loss is the sum of cost[j] e^2. The first candidate of least loss wins.
4. Every later block loses E V[block, later], E being the winner's errors.

Rows do not depend on each other. All backends follow this order, but each has its own precision: one code that differs
changes all later ones of its row. So CPU and GPU agree in the loss, not in the bytes.
"""

from __future__ import annotations

import torch

from ..codes import CodeTables
from .feedback_reference import encode_feedback_reference
from .feedback_types import FeedbackFactor, FeedbackRows


def encode_feedback(
    weight: torch.Tensor, factor: FeedbackFactor, tables: CodeTables, block_size: int, search: bool = True
) -> FeedbackRows:
    """Encode weights with `log8` scales and error feedback.

    Args:
        weight: (rows, columns) or (experts, rows, columns), of any floating dtype.
        factor: of the moments of the inputs, with the same leading dimensions, on the same device.
        tables: the codebook.
        block_size: a power of two from 32 to 256.
        search: try 31 scales per block and keep the best, rather than two.
    """
    single = weight.dim() == 2
    stacked = FeedbackFactor(factor.upper[None], factor.cost[None]) if single else factor
    coded = encode_feedback_reference(weight[None] if single else weight, stacked, tables, block_size, search)
    return FeedbackRows(*(field[0] for field in coded)) if single else coded
