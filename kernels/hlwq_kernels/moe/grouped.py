"""A layer of experts for many tokens, where all of it can be decoded at once: the host is not asked.

Only the device knows which experts the tokens route to. Every expert has its rows in the decoded weight. The decoder
skips the experts that no token routes to, and their rows stay undefined.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import grouped_mm

from ..codes import QuantizedWeight
from ..common import supports_triton
from ..decode import decode_used_parts
from .combine import combine_expert_outputs

_MAX_DECODED_WEIGHTS = 2**29
"""The most weights that are decoded at once: 1 GiB in bfloat16; bounds memory. Not measured."""


def can_decode_all(x: torch.Tensor, gate_up: QuantizedWeight) -> bool:
    """Return whether `grouped_gemm_experts` takes these: bfloat16, few enough weights, and a device with Triton."""
    weights = gate_up.codes.numel() * 8 // gate_up.bits
    supported = x.dtype == torch.bfloat16 and supports_triton(x.device)
    return supported and weights <= _MAX_DECODED_WEIGHTS and gate_up.codes.is_contiguous()


def grouped_gemm_experts(
    x: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    gate_up: QuantizedWeight,
    down: QuantizedWeight,
    gate: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Compute `coded_experts` with one grouped product per matrix; the result is the same as in batches."""
    (tokens, k), experts = topk_ids.shape, len(gate_up.codes)
    pairs = torch.where((topk_ids >= 0) & (topk_ids < experts), topk_ids, experts).flatten()
    order = pairs.argsort(stable=True)
    counts = torch.zeros(experts + 1, dtype=torch.int32, device=x.device)
    counts = counts.scatter_add_(0, pairs, torch.ones_like(pairs, dtype=torch.int32))[:experts]
    ends = counts.cumsum(0, dtype=torch.int32)
    inner = gate(_multiply(x[order // k], gate_up, counts, ends))
    rows = _multiply(inner, down, counts, ends)
    numbers = torch.arange(len(order), device=x.device)
    row_of = torch.empty_like(order)
    row_of[order] = torch.where(numbers < ends[-1], numbers, -1)
    return combine_expert_outputs(rows, row_of.view(tokens, k), topk_weights.float())


def _multiply(x: torch.Tensor, weight: QuantizedWeight, counts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply rows of x, sorted by expert, by the transposes of the experts.

    Rows after the last expert's are undefined.
    """
    codes, scales, base = (None if t is None else t.flatten(0, 1) for t in weight[:3])
    assert codes is not None
    assert scales is not None
    decoded = decode_used_parts(codes, scales, base, weight.centroids, weight.block_size, x.shape[1], x.dtype, counts)
    product: torch.Tensor = grouped_mm(x, decoded.view(*weight.codes.shape[:2], -1).transpose(-2, -1), offs=ends)
    return product
