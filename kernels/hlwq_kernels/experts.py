"""A layer of experts from codes: a few tokens in two launches, many by decoding the experts that they chose.

For a few tokens nothing is decoded and nothing is asked of the host: the choice of experts stays on the device, where
the kernels read it. So a CUDA graph replays the layer whatever is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .decode import decode_rows
from .linear import coded_linear
from .matmul import GATES, CodedWeight, multiply_and_sum, multiply_each, runs_matmul
from .ops import op_where_traced
from .weigh import weigh_rows

FEW_PAIRS = 512
"""Pairs of a token and an expert up to which each pair's codes are multiplied ; by bytes moved, not measured."""
_WAVE_WEIGHTS = 2**28

Gate = Callable[[torch.Tensor], torch.Tensor]


def coded_experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    routed: torch.Tensor,
    gate_up: CodedWeight,
    down: CodedWeight,
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
        return coded_experts_torch(x, chosen, routed, gate_up, down, gate)
    if chosen.numel() > FEW_PAIRS:
        return _grouped(x, chosen, routed, gate_up, down, gate)
    chosen, routed = chosen.to(torch.int64).contiguous(), routed.to(torch.float32).contiguous()
    if gate_name is not None and gate_name in GATES:
        inner = _each(x, chosen, *gate_up, torch.float32)
    else:
        gate_name, inner = "", gate(_each(x, chosen, *gate_up, x.dtype))
    out: torch.Tensor = _sum(inner, chosen, routed, *down, gate_name, x.dtype)
    return out


def coded_experts_torch(
    x: torch.Tensor, chosen: torch.Tensor, routed: torch.Tensor, gate_up: CodedWeight, down: CodedWeight, gate: Gate
) -> torch.Tensor:
    """The torch twin: expert after expert; gradients flow to `x` and `routed`."""
    out = torch.zeros_like(x)
    for expert in torch.unique(chosen).tolist():
        if not 0 <= expert < len(gate_up.codes):
            continue
        token, place = (chosen == expert).nonzero(as_tuple=True)
        inner = gate(coded_linear(x[token], *_one(gate_up, expert)))
        hidden = coded_linear(inner, *_one(down, expert))
        out = out.index_add(0, token, (hidden * routed[token, place, None]).to(out.dtype))
    return out


def _one(experts: CodedWeight, expert: int) -> CodedWeight:
    base = None if experts.base is None else experts.base[expert]
    return experts._replace(codes=experts.codes[expert], scales=experts.scales[expert], base=base)


def _each_on_its_device(
    x: torch.Tensor, chosen: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, base: torch.Tensor | None,
    centroids: torch.Tensor, block_size: int, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    experts = CodedWeight(codes, scales, base, centroids, block_size)
    return multiply_each(x, experts, chosen, dtype)


_each_op = torch.library.custom_op("hlwq::experts_each", _each_on_its_device, mutates_args=())
_each = op_where_traced(_each_op, _each_on_its_device)


@_each_op.register_fake
def _(
    x: torch.Tensor, chosen: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, base: torch.Tensor | None,
    centroids: torch.Tensor, block_size: int, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    return x.new_empty((chosen.shape[0] * chosen.shape[1], codes.shape[1]), dtype=dtype)


def _sum_on_its_device(
    x: torch.Tensor, chosen: torch.Tensor, routed: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor,
    base: torch.Tensor | None, centroids: torch.Tensor, block_size: int, gate: str, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    experts = CodedWeight(codes, scales, base, centroids, block_size)
    return multiply_and_sum(x, experts, chosen, routed, gate or None, dtype)


_sum_op = torch.library.custom_op("hlwq::experts_sum", _sum_on_its_device, mutates_args=())
_sum = op_where_traced(_sum_op, _sum_on_its_device)


@_sum_op.register_fake
def _(
    x: torch.Tensor, chosen: torch.Tensor, routed: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor,
    base: torch.Tensor | None, centroids: torch.Tensor, block_size: int, gate: str, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    return x.new_empty((chosen.shape[0], codes.shape[1]), dtype=dtype)


def _grouped(
    x: torch.Tensor, chosen: torch.Tensor, routed: torch.Tensor, gate_up: CodedWeight, down: CodedWeight, gate: Gate
) -> torch.Tensor:
    """Pairs sorted by expert; experts are decoded in waves, those that nobody chose left out. Asks the host once."""
    tokens, k = chosen.shape
    experts = len(gate_up.codes)
    pairs = torch.where((chosen >= 0) & (chosen < experts), chosen, experts).flatten()
    order = pairs.argsort(stable=True)
    counts = torch.bincount(pairs, minlength=experts + 1)[:experts].tolist()
    rows, start = x.new_empty(sum(counts), x.shape[1]), 0
    for wave, places in _waves(counts, gate_up.codes[0].numel() * 8 // gate_up.bits, order):
        ends = torch.tensor([counts[e] for e in wave], device=x.device).cumsum(0).to(torch.int32)
        hidden = _multiply(x[places // k], _decoded(gate_up, wave, x.shape[1], x.dtype), ends)
        inner = gate(hidden)
        rows[start : start + len(places)] = _multiply(inner, _decoded(down, wave, inner.shape[1], x.dtype), ends)
        start += len(places)
    place = torch.full_like(order, -1)
    place[order[:start]] = torch.arange(start, device=x.device)
    return weigh_rows(rows, place.view(tokens, k), routed.float())


def _waves(counts: list[int], weights: int, order: torch.Tensor) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Experts to decode at once, and the pairs that chose them, sorted by expert."""
    present = [e for e, n in enumerate(counts) if n]
    step, start = max(1, _WAVE_WEIGHTS // weights), 0
    for first in range(0, len(present), step):
        wave = present[first : first + step]
        end = start + sum(counts[e] for e in wave)
        yield wave, order[start:end]
        start = end


def _decoded(experts: CodedWeight, wave: list[int], columns: int, dtype: torch.dtype) -> torch.Tensor:
    """(experts of the wave, out, columns)."""
    rows = experts.codes.shape[1]
    if wave[-1] - wave[0] + 1 == len(wave):
        codes, scales, base = (None if t is None else t[wave[0] : wave[-1] + 1] for t in experts[:3])
    else:
        index = torch.tensor(wave, device=experts.codes.device)
        codes, scales, base = (None if t is None else t.index_select(0, index) for t in experts[:3])
    assert codes is not None
    assert scales is not None
    flat = None if base is None else base.flatten()
    decoded = decode_rows(
        codes.flatten(0, 1), scales.flatten(0, 1), flat, experts.centroids, experts.block_size, columns, dtype
    )
    return decoded.view(len(wave), rows, columns)


def _multiply(x: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Rows of x, sorted by expert, times the transpose of theirs; `ends` int32 (experts,) says where each one's end."""
    if x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (8, 0):
        product: torch.Tensor = torch.nn.functional.grouped_mm(x, weights.transpose(-2, -1), offs=ends)
        return product
    starts = [0, *ends.tolist()]
    parts = [x[a:b] @ w.T for a, b, w in zip(starts, starts[1:], weights, strict=False)]
    return torch.cat(parts)
