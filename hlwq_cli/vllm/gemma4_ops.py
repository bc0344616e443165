"""The two custom ops of Gemma 4's fused layers in vLLM: what is between its products and its attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import gelu
from vllm.model_executor.models import gemma4

from hlwq_kernels import coded_experts, coded_linear
from hlwq_kernels.codes import QuantizedWeight
from hlwq_kernels.common import Scratch, traceable
from hlwq_kernels.decode_step import (
    Norm,
    fused_add_rmsnorm_post_ffn,
    fused_add_rmsnorm_pre_ffn,
    qk_norm_rope,
    supports_decode_step,
)
from hlwq_kernels.linear import MAX_FUSED_TOKENS, multiply_codes, supports_gate
from hlwq_kernels.moe import route_topk

GATE = "gelu_pytorch_tanh"
NUM_PLAIN = 11
"""Tensors of `LayerWeights` that are not codes."""
_SCRATCH = Scratch()


class LayerWeights(NamedTuple):
    """What the op of the feed-forward half reads; empty tensors stand for what a layer does not have.

    A custom op takes them as one list, so that layers of one shape share one compiled graph.
    """

    after_attention: torch.Tensor
    before_dense: torch.Tensor
    before_experts: torch.Tensor
    router_scale: torch.Tensor
    router: torch.Tensor
    expert_scale: torch.Tensor
    after_dense: torch.Tensor
    after_experts: torch.Tensor
    after: torch.Tensor
    scalar: torch.Tensor
    following: torch.Tensor
    gate_up: QuantizedWeight
    down: QuantizedWeight
    w13: QuantizedWeight | None
    w2: QuantizedWeight | None

    @classmethod
    def unpack(cls, tensors: list[torch.Tensor], block_size: int) -> LayerWeights:
        """Undo `_weights_of` of gemma4.py."""
        coded = []
        for at in range(NUM_PLAIN, len(tensors), 4):
            codes, scales, base, centroids = tensors[at : at + 4]
            weight = QuantizedWeight(codes, scales, base if base.numel() else None, centroids, block_size)
            coded.append(weight if codes.numel() else None)
        gate_up, down, w13, w2 = coded
        assert gate_up is not None
        assert down is not None
        return cls._make([*tensors[:NUM_PLAIN], gate_up, down, w13, w2])


def _heads_on_device(
    qkv: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    key_heads: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    size = table.shape[1]
    q, k, v = qkv.split([heads * size, key_heads * size, key_heads * size], dim=-1)
    found = qk_norm_rope(q, k, v, Norm(query_weight, eps), Norm(key_weight, eps), table, positions)
    query, key, value = (t.flatten(1) for t in found)
    return query, key, value


_heads_op = torch.library.custom_op("hlwq::vllm_gemma4_heads", _heads_on_device, mutates_args=())
norm_and_rotate_heads = traceable(_heads_op, _heads_on_device)


@_heads_op.register_fake
def _(
    qkv: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    key_heads: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, size = qkv.shape[0], table.shape[1]
    key, value = (qkv.new_empty((rows, key_heads * size)) for _ in range(2))
    return qkv.new_empty((rows, heads * size)), key, value


def _feed_forward_on_device(
    attended: torch.Tensor, residual: torch.Tensor, tensors: list[torch.Tensor], eps: float, top_k: int, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    w = LayerWeights.unpack(tensors, block_size)
    total, x, for_experts, for_router = fused_add_rmsnorm_pre_ffn(
        attended,
        residual,
        Norm(w.after_attention, eps),
        Norm(w.before_dense, eps),
        Norm(w.before_experts, eps) if top_k else None,
        w.router_scale if top_k else None,
        float(attended.shape[-1] ** -0.5),
    )
    dense, experts = _dense_and_experts(x, for_experts, for_router, w, top_k)
    out, follows = fused_add_rmsnorm_post_ffn(
        dense,
        experts,
        total,
        Norm(w.after_dense, eps) if top_k else None,
        Norm(w.after_experts, eps) if top_k else None,
        Norm(w.after, eps),
        w.scalar,
        Norm(w.following, eps) if w.following.numel() else None,
    )
    return out, out.new_empty(0) if follows is None else follows


_feed_forward_op = torch.library.custom_op("hlwq::vllm_gemma4_feed_forward", _feed_forward_on_device, mutates_args=())
feed_forward = traceable(_feed_forward_op, _feed_forward_on_device)


@_feed_forward_op.register_fake
def _(
    attended: torch.Tensor, residual: torch.Tensor, tensors: list[torch.Tensor], eps: float, top_k: int, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    follows = torch.empty_like(attended) if tensors[NUM_PLAIN - 1].numel() else attended.new_empty(0)
    return torch.empty_like(attended), follows


def _dense_and_experts(
    x: torch.Tensor, for_experts: torch.Tensor | None, for_router: torch.Tensor | None, w: LayerWeights, top_k: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the dense half and the experts, in parallel on a GPU where both are short."""
    if for_experts is None or for_router is None:
        return _dense(x, w), None
    if not x.is_cuda or len(x) > MAX_FUSED_TOKENS:
        return _dense(x, w), _experts(for_experts, for_router, w, top_k)
    here, beside = torch.cuda.current_stream(x.device), _SCRATCH.side_stream(x.device)
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        dense = _dense(x, w)
    experts = _experts(for_experts, for_router, w, top_k)
    here.wait_stream(beside)
    return dense, experts


def _dense(x: torch.Tensor, w: LayerWeights) -> torch.Tensor:
    gate_up = coded_linear(x, *w.gate_up)
    if supports_gate(x, w.down):
        return multiply_codes(gate_up, w.down, None, GATE)
    return coded_linear(_gated(gate_up), *w.down)


def _experts(x: torch.Tensor, for_router: torch.Tensor, w: LayerWeights, top_k: int) -> torch.Tensor:
    assert w.w13 is not None
    assert w.w2 is not None
    if len(x) <= MAX_FUSED_TOKENS or not supports_decode_step(x):
        ids, weights = route_topk(for_router, w.router, w.expert_scale, top_k, _SCRATCH)
    else:
        logits = torch.nn.functional.linear(for_router, w.router)
        weights, ids = gemma4.gemma4_fused_routing_kernel_triton(logits, top_k, w.expert_scale)
    return coded_experts(x, ids, weights, w.w13, w.w2, _gated, GATE)


def _gated(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda:
        out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
        torch.ops._C.gelu_tanh_and_mul(out, x)
        return out
    first, second = x.chunk(2, dim=-1)
    return gelu(first, approximate="tanh") * second
