"""A layer of experts from codes: two launches for a few tokens; for many tokens, their experts are decoded.

For a few tokens nothing is decoded and the host is not asked. The ids of the experts stay on the device, where the
kernels read them, so a CUDA graph can replay the layer for any routing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from ..codes import QuantizedWeight
from ..common import traceable
from ..decode import decode_rows
from ..linear import GATES, coded_linear, moe_gemv_down, moe_gemv_up, supports_gemm_small_m, supports_moe_gemv_down
from .combine import combine_expert_outputs
from .grouped import can_decode_all, grouped_gemm_experts

MAX_FUSED_PAIRS = 512
"""The most pairs of a token and an expert for `fused_experts`. Estimated from bytes moved, not measured."""
_BATCH_WEIGHTS = 2**28
"""The most weights that are decoded at once; bounds memory. Not measured."""

Gate = Callable[[torch.Tensor], torch.Tensor]


def coded_experts(
    x: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    gate_up: QuantizedWeight,
    down: QuantizedWeight,
    gate: Gate,
    gate_name: str | None = None,
) -> torch.Tensor:
    """Return each token's weighted sum over its experts.

    Args:
        x: (tokens, hidden), floating.
        topk_ids: (tokens, k), integers; an id that is not an expert's adds nothing.
        topk_weights: (tokens, k).
        gate_up: quantized (experts, 2 * inner, hidden).
        down: quantized (experts, hidden, inner).
        gate: (rows, 2 * inner) to (rows, inner).
        gate_name: the name of `gate` if it halves its input and is one of the GATES of the kernels.

    Returns:
        (tokens, hidden), in the dtype of `x`.
    """
    learns = torch.is_grad_enabled() and (x.requires_grad or topk_weights.requires_grad)
    if learns or not supports_gemm_small_m(x) or not x.shape[0]:
        return coded_experts_reference(x, topk_ids, topk_weights, gate_up, down, gate)
    if topk_ids.numel() > MAX_FUSED_PAIRS and can_decode_all(x, gate_up):
        return grouped_gemm_experts(x, topk_ids.to(torch.int64), topk_weights, gate_up, down, gate)
    if topk_ids.numel() > MAX_FUSED_PAIRS:
        batches = _resident_batches(gate_up, down)
        return grouped_experts(x, topk_ids, topk_weights, len(gate_up.codes), gate, batches)
    return fused_experts(x, topk_ids, topk_weights, gate_up, down, gate, gate_name)


def fused_experts(
    x: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    gate_up: QuantizedWeight,
    down: QuantizedWeight,
    gate: Gate,
    gate_name: str | None,
) -> torch.Tensor:
    """Compute `coded_experts` of a few pairs directly from codes; a token's result does not depend on the others."""
    topk_ids, topk_weights = topk_ids.to(torch.int64).contiguous(), topk_weights.to(torch.float32).contiguous()
    if not supports_moe_gemv_down(down, topk_ids.shape[1]):
        rows = _each(gate(_each(x, topk_ids, *gate_up, x.dtype)), topk_ids.view(-1, 1), *down, x.dtype)
        return combine_expert_outputs(rows, torch.arange(len(rows), device=x.device).view_as(topk_ids), topk_weights)
    if gate_name is not None and gate_name in GATES:
        inner = _each(x, topk_ids, *gate_up, torch.float32)
    else:
        gate_name, inner = "", gate(_each(x, topk_ids, *gate_up, x.dtype))
    out: torch.Tensor = _sum(inner, topk_ids, topk_weights, *down, gate_name, x.dtype)
    return out


def coded_experts_reference(
    x: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    gate_up: QuantizedWeight,
    down: QuantizedWeight,
    gate: Gate,
) -> torch.Tensor:
    """Compute `coded_experts` one expert after the other. Gradients flow to `x` and `topk_weights`."""
    batch = ExpertBatch(list(range(len(gate_up.codes))), gate_up, down)
    return loop_over_experts(x, topk_ids, topk_weights, len(gate_up.codes), gate, lambda present: [batch])


class ExpertBatch(NamedTuple):
    """Ids of experts, ascending, and their weights in the same order.

    For `loop_over_experts` a batch may also hold experts that no token asked for.
    """

    experts: list[int]
    gate_up: QuantizedWeight
    down: QuantizedWeight


ExpertBatches = Callable[[list[int]], Iterable[ExpertBatch]]
"""Yields the experts asked for, ascending, in batches. A batch may be overwritten once the next one is asked for."""


def loop_over_experts(
    x: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    experts: int,
    gate: Gate,
    expert_batches: ExpertBatches,
) -> torch.Tensor:
    """Compute `coded_experts_reference` from batches of any size; the result is the same to the bit."""
    out = torch.zeros_like(x)
    present = [e for e in torch.unique(topk_ids).tolist() if 0 <= e < experts]
    for batch in expert_batches(present):
        for i, expert in enumerate(batch.experts):
            if expert not in present:
                continue
            token, position = (topk_ids == expert).nonzero(as_tuple=True)
            inner = gate(coded_linear(x[token], *_one(batch.gate_up, i)))
            hidden = coded_linear(inner, *_one(batch.down, i))
            out = out.index_add(0, token, (hidden * topk_weights[token, position, None]).to(out.dtype))
    return out


def _one(experts: QuantizedWeight, expert: int) -> QuantizedWeight:
    base = None if experts.base is None else experts.base[expert]
    return experts._replace(codes=experts.codes[expert], scales=experts.scales[expert], base=base)


# The names of the parameters of the two ops below are part of their schemas.
def _each_on_device(
    x: torch.Tensor,
    chosen: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return moe_gemv_up(x, QuantizedWeight(codes, scales, base, centroids, block_size), chosen, dtype)


def _sum_on_device(
    x: torch.Tensor,
    chosen: torch.Tensor,
    routed: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    gate: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    experts = QuantizedWeight(codes, scales, base, centroids, block_size)
    return moe_gemv_down(x, experts, chosen, routed, gate or None, dtype)


_each_op = torch.library.custom_op("hlwq::experts_each", _each_on_device, mutates_args=())
_sum_op = torch.library.custom_op("hlwq::experts_sum", _sum_on_device, mutates_args=())
_each = traceable(_each_op, _each_on_device)
_sum = traceable(_sum_op, _sum_on_device)


@_each_op.register_fake
def _(x: torch.Tensor, chosen: torch.Tensor, codes: torch.Tensor, *others: Any) -> torch.Tensor:
    return x.new_empty((chosen.shape[0] * chosen.shape[1], codes.shape[1]), dtype=others[-1])


@_sum_op.register_fake
def _(x: torch.Tensor, chosen: torch.Tensor, routed: torch.Tensor, codes: torch.Tensor, *others: Any) -> torch.Tensor:
    return x.new_empty((chosen.shape[0], codes.shape[1]), dtype=others[-1])


def grouped_experts(
    x: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    experts: int,
    gate: Gate,
    expert_batches: ExpertBatches,
) -> torch.Tensor:
    """Sort the pairs by expert and multiply them batch by batch. The host is asked once.

    Only experts that some token routes to are asked for. All results are summed at the end, in one order, so batches
    change nothing.
    """
    tokens, k = topk_ids.shape
    pairs = torch.where((topk_ids >= 0) & (topk_ids < experts), topk_ids, experts).flatten()
    order = pairs.argsort(stable=True)
    counts = torch.bincount(pairs, minlength=experts + 1)[:experts].tolist()
    rows, start = x.new_empty(sum(counts), x.shape[1]), 0
    for batch in expert_batches([e for e, n in enumerate(counts) if n]):
        sizes = [counts[e] for e in batch.experts]
        end = start + sum(sizes)
        ends = torch.tensor(sizes, device=x.device).cumsum(0).to(torch.int32)
        inner = gate(_multiply_codes(x[order[start:end] // k], batch.gate_up, ends))
        rows[start:end] = _multiply_codes(inner, batch.down, ends)
        start = end
    row_of = torch.full_like(order, -1)
    row_of[order[:start]] = torch.arange(start, device=x.device)
    return combine_expert_outputs(rows, row_of.view(tokens, k), topk_weights.float())


def _resident_batches(gate_up: QuantizedWeight, down: QuantizedWeight) -> ExpertBatches:
    """Return batches of experts that are all on the device, each as large as may be decoded at once."""

    def expert_batches(present: list[int]) -> Iterator[ExpertBatch]:
        size = max(1, _BATCH_WEIGHTS // (gate_up.codes[0].numel() * 8 // gate_up.bits))
        for first in range(0, len(present), size):
            experts = present[first : first + size]
            yield ExpertBatch(experts, _select(gate_up, experts), _select(down, experts))

    return expert_batches


def _select(weight: QuantizedWeight, experts: list[int]) -> QuantizedWeight:
    if experts[-1] - experts[0] + 1 == len(experts):
        codes, scales, base = (None if t is None else t[experts[0] : experts[-1] + 1] for t in weight[:3])
    else:
        index = torch.tensor(experts, device=weight.codes.device)
        codes, scales, base = (None if t is None else t.index_select(0, index) for t in weight[:3])
    assert codes is not None
    assert scales is not None
    return weight._replace(codes=codes, scales=scales, base=base)


def _multiply_codes(x: torch.Tensor, weight: QuantizedWeight, ends: torch.Tensor) -> torch.Tensor:
    """Multiply rows of x, sorted by expert, by the transposes of the experts; see `_multiply` for `ends`."""
    codes, scales, base = (None if t is None else t.flatten(0, 1) for t in weight[:3])
    assert codes is not None
    assert scales is not None
    decoded = decode_rows(codes, scales, base, weight.centroids, weight.block_size, x.shape[1], x.dtype)
    return _multiply(x, decoded.view(*weight.codes.shape[:2], x.shape[1]), ends)


def _multiply(x: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply rows of x, sorted by expert, by the transposes of the experts.

    `ends` is int32 (experts,): the row at which each expert's rows end.
    """
    if x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (8, 0):
        product: torch.Tensor = torch.nn.functional.grouped_mm(x, weights.transpose(-2, -1), offs=ends)
        return product
    starts = [0, *ends.tolist()]
    parts = [x[a:b] @ w.T for a, b, w in zip(starts, starts[1:], weights, strict=False)]
    return torch.cat(parts)
