"""GPTQ (arXiv 2210.17323) as published: asymmetric int4 in groups, one column after the other. Used by calibrated.py.

Libraries do not take all layers here: llm-compressor refuses rows that are not whole groups, and knows no stacked
experts. This is the plain algorithm: damping of 1 % of the mean of the diagonal, blocks of 128 columns, columns in
their order, scale and zero of a group from what is left of it when its first column comes. The last group of a row may
be short. A scale is fp16, a zero has 4 bits.
"""

import torch

BLOCK = 128
DAMPING = 0.01
LEVELS = 15


def gptq(weight: torch.Tensor, moments: torch.Tensor, group: int) -> tuple[torch.Tensor, float]:
    """Return a weight (rows, columns) after int4 coding, and the stored bits per weight.

    Args:
        weight: float32.
        moments: (columns, columns), sums of x x' over the inputs x; a column that is never used has zeros.
        group: weights of a row that share a scale.
    """
    left, columns = weight.double().clone(), weight.shape[1]
    upper = inverse_factor(moments.double())
    done = torch.empty_like(left)
    scale = zero = torch.empty(0)
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        errors = torch.empty(len(left), last - first, dtype=left.dtype)
        for at in range(first, last):
            if at % group == 0:
                scale, zero = grid(left[:, at : at + group])
            codes = (left[:, at] / scale + zero).round().clamp(0, LEVELS)
            done[:, at] = (codes - zero) * scale
            errors[:, at - first] = (left[:, at] - done[:, at]) / upper[at, at]
            left[:, at:last] -= errors[:, at - first, None] * upper[at, at:last]
        left[:, last:] -= errors @ upper[first:last, last:]
    groups = -(-columns // group)
    return done.to(weight.dtype), 4 + groups * (16 + 4) / columns


def inverse_factor(moments: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular U with H^-1 = U'U, of the damped moments H."""
    diagonal = moments.diagonal()
    unused = diagonal == 0
    damped = moments + torch.diag(unused + DAMPING * diagonal.mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def grid(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and zero (rows,) of an asymmetric grid over the values of a group, as stored."""
    low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    scale = ((high - low) / LEVELS).half().to(values.dtype).clamp(min=2**-24)
    return scale, (-low / scale).round().clamp(0, LEVELS)
