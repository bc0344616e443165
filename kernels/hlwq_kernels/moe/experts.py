"""A layer of experts from codes: a few tokens in two launches, many by decoding the experts that they chose.

For a few tokens nothing is decoded and nothing is asked of the host: the choice of experts stays on the device, where
the kernels read it. So a CUDA graph replays the layer whatever is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from ..codes import QuantizedWeight
from ..common.custom_op import op_where_traced
from ..decode import decode_rows
from ..linear.gemm_small_m import runs_matmul
from ..linear.gemv import GATES, multiply_and_sum, multiply_each, takes_sum
from ..linear.linear import coded_linear
from .combine import weigh_rows
from .grouped import can_decode_all, grouped_gemm_experts

MAX_FUSED_PAIRS = 512
"""Pairs of a token and an expert up to which each pair's codes are multiplied ; by bytes moved, not measured."""
_WAVE_WEIGHTS = 2**28

Gate = Callable[[torch.Tensor], torch.Tensor]


def coded_experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    routed: torch.Tensor,
    gate_up: QuantizedWeight,
    down: QuantizedWeight,
    gate: Gate,
    gate_name: str | None = None,
) -> torch.Tensor:
    """The sum over the experts that each token chose, weighed.

    Args:
        x: (tokens, hidden), floating.
        chosen: (tokens, k), whole numbers; those that are no expert's count for nothing.
        routed: (tokens, k), the weights.
        gate_up: coded (experts, 2 * inner, hidden).
        down: coded (experts, hidden, inner).
        gate: (rows, 2 * inner) to (rows, inner).
        gate_name: what `gate` is where it halves its input and is one of `matmul.GATES`.

    Returns:
        (tokens, hidden), in the dtype of `x`.
    """
    learns = torch.is_grad_enabled() and (x.requires_grad or routed.requires_grad)
    if learns or not runs_matmul(x) or not x.shape[0]:
        return coded_experts_reference(x, chosen, routed, gate_up, down, gate)
    if chosen.numel() > MAX_FUSED_PAIRS and can_decode_all(x, gate_up):
        return grouped_gemm_experts(x, chosen.to(torch.int64), routed, gate_up, down, gate)
    if chosen.numel() > MAX_FUSED_PAIRS:
        return grouped_experts(x, chosen, routed, len(gate_up.codes), gate, _waves(gate_up, down))
    return fused_experts(x, chosen, routed, gate_up, down, gate, gate_name)


def fused_experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    routed: torch.Tensor,
    gate_up: QuantizedWeight,
    down: QuantizedWeight,
    gate: Gate,
    gate_name: str | None,
) -> torch.Tensor:
    """`coded_experts` of few pairs, from codes as they are; what a token gets does not depend on the others."""
    chosen, routed = chosen.to(torch.int64).contiguous(), routed.to(torch.float32).contiguous()
    if not takes_sum(down, chosen.shape[1]):
        rows = _each(gate(_each(x, chosen, *gate_up, x.dtype)), chosen.view(-1, 1), *down, x.dtype)
        return weigh_rows(rows, torch.arange(len(rows), device=x.device).view_as(chosen), routed)
    if gate_name is not None and gate_name in GATES:
        inner = _each(x, chosen, *gate_up, torch.float32)
    else:
        gate_name, inner = "", gate(_each(x, chosen, *gate_up, x.dtype))
    out: torch.Tensor = _sum(inner, chosen, routed, *down, gate_name, x.dtype)
    return out


def coded_experts_reference(
    x: torch.Tensor,
    chosen: torch.Tensor,
    routed: torch.Tensor,
    gate_up: QuantizedWeight,
    down: QuantizedWeight,
    gate: Gate,
) -> torch.Tensor:
    """The reference: expert after expert; gradients flow to `x` and `routed`."""
    wave = Wave(list(range(len(gate_up.codes))), gate_up, down)
    return loop_over_experts(x, chosen, routed, len(gate_up.codes), gate, lambda present: [wave])


class Wave(NamedTuple):
    """Experts, ascending, and their codes in the same order; for `loop_over_experts` also some that nobody chose."""

    experts: list[int]
    gate_up: QuantizedWeight
    down: QuantizedWeight


Waves = Callable[[list[int]], Iterable[Wave]]
"""Gives the experts asked for, ascending, wave after wave; what a wave holds may be overwritten after it."""


def loop_over_experts(
    x: torch.Tensor, chosen: torch.Tensor, routed: torch.Tensor, experts: int, gate: Gate, waves: Waves
) -> torch.Tensor:
    """`coded_experts_reference` over experts that come in waves of any size: the same result to the bit."""
    out = torch.zeros_like(x)
    present = [e for e in torch.unique(chosen).tolist() if 0 <= e < experts]
    for wave in waves(present):
        for i, expert in enumerate(wave.experts):
            if expert not in present:
                continue
            token, place = (chosen == expert).nonzero(as_tuple=True)
            inner = gate(coded_linear(x[token], *_one(wave.gate_up, i)))
            hidden = coded_linear(inner, *_one(wave.down, i))
            out = out.index_add(0, token, (hidden * routed[token, place, None]).to(out.dtype))
    return out


def _one(experts: QuantizedWeight, expert: int) -> QuantizedWeight:
    base = None if experts.base is None else experts.base[expert]
    return experts._replace(codes=experts.codes[expert], scales=experts.scales[expert], base=base)


def _each_on_its_device(
    x: torch.Tensor,
    chosen: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    experts = QuantizedWeight(codes, scales, base, centroids, block_size)
    return multiply_each(x, experts, chosen, dtype)


_each_op = torch.library.custom_op("hlwq::experts_each", _each_on_its_device, mutates_args=())
_each = op_where_traced(_each_op, _each_on_its_device)


@_each_op.register_fake
def _(
    x: torch.Tensor,
    chosen: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return x.new_empty((chosen.shape[0] * chosen.shape[1], codes.shape[1]), dtype=dtype)


def _sum_on_its_device(
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
    return multiply_and_sum(x, experts, chosen, routed, gate or None, dtype)


_sum_op = torch.library.custom_op("hlwq::experts_sum", _sum_on_its_device, mutates_args=())
_sum = op_where_traced(_sum_op, _sum_on_its_device)


@_sum_op.register_fake
def _(
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
    return x.new_empty((chosen.shape[0], codes.shape[1]), dtype=dtype)


def grouped_experts(
    x: torch.Tensor, chosen: torch.Tensor, routed: torch.Tensor, experts: int, gate: Gate, waves: Waves
) -> torch.Tensor:
    """Pairs sorted by expert, multiplied wave by wave; experts that nobody chose are not asked for. Asks the host once.

    All that the experts give is summed at the end, in one order, so that waves change nothing.
    """
    tokens, k = chosen.shape
    pairs = torch.where((chosen >= 0) & (chosen < experts), chosen, experts).flatten()
    order = pairs.argsort(stable=True)
    counts = torch.bincount(pairs, minlength=experts + 1)[:experts].tolist()
    rows, start = x.new_empty(sum(counts), x.shape[1]), 0
    for wave in waves([e for e, n in enumerate(counts) if n]):
        sizes = [counts[e] for e in wave.experts]
        end = start + sum(sizes)
        ends = torch.tensor(sizes, device=x.device).cumsum(0).to(torch.int32)
        inner = gate(_multiply_codes(x[order[start:end] // k], wave.gate_up, ends))
        rows[start:end] = _multiply_codes(inner, wave.down, ends)
        start = end
    place = torch.full_like(order, -1)
    place[order[:start]] = torch.arange(start, device=x.device)
    return weigh_rows(rows, place.view(tokens, k), routed.float())


def _waves(gate_up: QuantizedWeight, down: QuantizedWeight) -> Waves:
    """Of experts that are all there, as many at once as may be decoded."""

    def waves(present: list[int]) -> Iterator[Wave]:
        step = max(1, _WAVE_WEIGHTS // (gate_up.codes[0].numel() * 8 // gate_up.bits))
        for first in range(0, len(present), step):
            some = present[first : first + step]
            yield Wave(some, _of(gate_up, some), _of(down, some))

    return waves


def _of(experts: QuantizedWeight, some: list[int]) -> QuantizedWeight:
    if some[-1] - some[0] + 1 == len(some):
        codes, scales, base = (None if t is None else t[some[0] : some[-1] + 1] for t in experts[:3])
    else:
        index = torch.tensor(some, device=experts.codes.device)
        codes, scales, base = (None if t is None else t.index_select(0, index) for t in experts[:3])
    assert codes is not None
    assert scales is not None
    return experts._replace(codes=codes, scales=scales, base=base)


def _multiply_codes(x: torch.Tensor, weight: QuantizedWeight, ends: torch.Tensor) -> torch.Tensor:
    """Rows of x, sorted by expert, times the transpose of theirs; `ends` int32 (experts,) says where each one's end."""
    codes, scales, base = (None if t is None else t.flatten(0, 1) for t in weight[:3])
    assert codes is not None
    assert scales is not None
    decoded = decode_rows(codes, scales, base, weight.centroids, weight.block_size, x.shape[1], x.dtype)
    return _multiply(x, decoded.view(*weight.codes.shape[:2], x.shape[1]), ends)


def _multiply(x: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Rows of x, sorted by expert, times the transpose of theirs; `ends` int32 (experts,) says where each one's end."""
    if x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (8, 0):
        product: torch.Tensor = torch.nn.functional.grouped_mm(x, weights.transpose(-2, -1), offs=ends)
        return product
    starts = [0, *ends.tolist()]
    parts = [x[a:b] @ w.T for a, b, w in zip(starts, starts[1:], weights, strict=False)]
    return torch.cat(parts)
