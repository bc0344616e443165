"""A layer of experts for many tokens, where all of it fits the device decoded: nothing is asked of the host.

Which experts were chosen is known on the device only. Every one has its place in the decoded weight; the decoder passes
over those that nobody chose, and their places hold whatever was there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import grouped_mm

from ..codes import QuantizedWeight
from ..common.device import runs_triton
from ..decode import decode_used_parts
from .combine import weigh_rows

_MOST_WEIGHTS = 2**29
"""Decoded at once: 1 GiB, which a mixture that is too big for the device has to do without."""


def can_decode_all(x: torch.Tensor, gate_up: QuantizedWeight) -> bool:
    """Whether `grouped_gemm_experts` takes these: bfloat16, not too many weights, and Triton."""
    weights = gate_up.codes.numel() * 8 // gate_up.bits
    able = x.dtype == torch.bfloat16 and runs_triton(x.device)
    return able and weights <= _MOST_WEIGHTS and gate_up.codes.is_contiguous()


def grouped_gemm_experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    routed: torch.Tensor,
    gate_up: QuantizedWeight,
    down: QuantizedWeight,
    gate: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """See `coded_experts`; the result is the same as by waves."""
    (tokens, k), experts = chosen.shape, len(gate_up.codes)
    pairs = torch.where((chosen >= 0) & (chosen < experts), chosen, experts).flatten()
    order = pairs.argsort(stable=True)
    counts = torch.zeros(experts + 1, dtype=torch.int32, device=x.device)
    counts = counts.scatter_add_(0, pairs, torch.ones_like(pairs, dtype=torch.int32))[:experts]
    ends = counts.cumsum(0, dtype=torch.int32)
    inner = gate(_multiply(x[order // k], gate_up, counts, ends))
    rows = _multiply(inner, down, counts, ends)
    numbers = torch.arange(len(order), device=x.device)
    place = torch.empty_like(order)
    place[order] = torch.where(numbers < ends[-1], numbers, -1)
    return weigh_rows(rows, place.view(tokens, k), routed.float())


def _multiply(x: torch.Tensor, weight: QuantizedWeight, counts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Rows of x, sorted by expert, times the transpose of theirs; rows behind the last expert's are not defined."""
    codes, scales, base = (None if t is None else t.flatten(0, 1) for t in weight[:3])
    assert codes is not None
    assert scales is not None
    decoded = decode_used_parts(codes, scales, base, weight.centroids, weight.block_size, x.shape[1], x.dtype, counts)
    product: torch.Tensor = grouped_mm(x, decoded.view(*weight.codes.shape[:2], -1).transpose(-2, -1), offs=ends)
    return product
