"""The references of routing and of the weighted sum: what their kernels compute, in plain torch, on any device.

The reference of a whole layer is `coded_experts_reference` in experts.py.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear


def route_topk_reference(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `route_topk` in plain torch."""
    probs, topk_ids = linear(x, weight).softmax(-1, dtype=torch.float32).topk(k, dim=-1)
    return topk_ids, probs / probs.sum(-1, keepdim=True) * scale[topk_ids]


def combine_expert_outputs_reference(
    rows: torch.Tensor, row_index: torch.Tensor, topk_weights: torch.Tensor
) -> torch.Tensor:
    """Compute `combine_expert_outputs` in plain torch."""
    y = torch.zeros(len(row_index), rows.shape[1], dtype=torch.float32, device=rows.device)
    if not len(rows):
        return y.to(rows.dtype)
    for at, weight in zip(row_index.unbind(1), topk_weights.unbind(1), strict=True):
        y += torch.where(at[:, None] < 0, 0.0, weight[:, None] * rows[at.clamp(min=0)].float())
    return y.to(rows.dtype)
