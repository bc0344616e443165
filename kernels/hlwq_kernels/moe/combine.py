"""The weighted sum of the results of each token's experts, read from wherever their rows are: moe/combine.cu."""

from __future__ import annotations

import torch

from ..common import DTYPE_IDS, CudaKernel, Macros, supports_nvrtc
from .reference import combine_expert_outputs_reference

_COMBINE = CudaKernel("moe/combine.cu", name="combine_expert_outputs")
_DTYPES = (torch.bfloat16, torch.float16)
_THREADS = 352
"""Threads of a CTA, each with eight columns: one round for the 2816 columns of the 26B Gemma 4. Not measured."""


def combine_expert_outputs(rows: torch.Tensor, row_index: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
    """Compute y[t] = sum over j of topk_weights[t, j] * rows[row_index[t, j]], in float32.

    Args:
        rows: (pairs, columns), floating.
        row_index: int64 (tokens, k), the row of each pair; a negative one adds nothing.
        topk_weights: float32 (tokens, k).

    Returns:
        (tokens, columns), in the dtype of `rows`.
    """
    y = rows.new_empty(len(row_index), rows.shape[1])
    if rows.dtype not in _DTYPES or rows.shape[1] % 8 or not supports_nvrtc(rows.device):
        return combine_expert_outputs_reference(rows, row_index, topk_weights)
    if y.numel():
        kind = DTYPE_IDS[rows.dtype]
        macros: Macros = (("INPUT", kind), ("OUTPUT", kind), ("THREADS", _THREADS))
        _COMBINE.launch(
            y.device,
            macros,
            (len(y),),
            _THREADS,
            rows,
            rows.shape[1],
            row_index.contiguous(),
            topk_weights.contiguous(),
            row_index.shape[1],
            y,
        )
    return y
