"""Decoder layers of Gemma 4 in few launches: a decode step takes 13 per layer, of which 3 are vLLM's attention.

vLLM's compiled layer takes about 30. For one sequence each launch costs more than what it computes. Two custom ops
replace all that is between the products and vLLM's attention, so its compiled graph stays whole. On several GPUs, with
adapters, or where a layer has parts that these ops do not know, vLLM's own layer runs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import gelu
from vllm.config import get_current_vllm_config
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

from .linear import HLWQLinearMethod
from .moe import HLWQMoEMethod

_GATE = "gelu_pytorch_tanh"
_SCRATCH = Scratch()
_NUM_PLAIN = 11
"""Tensors of `_Weights` that are not codes."""


def fuse_layers(model: nn.Module) -> None:
    """Let the layers of a Gemma 4 model run in few launches, where this is possible."""
    settings = get_current_vllm_config()
    if settings.lora_config is not None:
        return  # adapters replace modules that the ops would pass by
    layers: list[Any] = [m for m in model.modules() if type(m) is gemma4.Gemma4DecoderLayer]
    fused = [layer for layer in layers if _is_fusible(layer)]
    for layer in fused:
        layer.__class__ = HLWQGemma4Layer
        layer.following = ()
        if layer.enable_moe_block:  # on the CPU, vLLM empties the weight after it has packed it
            layer.register_buffer("hlwq_router", layer.router.proj.weight.data, persistent=False)
    if settings.speculative_config is not None:
        return  # a draft model may read the sum of what a layer returns
    for layer, following in pairwise(layers):
        if isinstance(layer, HLWQGemma4Layer) and isinstance(following, HLWQGemma4Layer):
            layer.following = (following.input_layernorm,)  # in a tuple it is no submodule


class HLWQGemma4Layer(gemma4.Gemma4DecoderLayer):  # type: ignore[misc]
    """vLLM's layer with another forward function; `fuse_layers` changes its class.

    Attributes:
        following: the first norm of the next layer, whose result this layer returns as its second; or nothing.
    """

    following: tuple[Any, ...]

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        per_layer_input: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the new hidden states (tokens, hidden), and their norm if a layer follows.

        Args:
            positions: (tokens,).
            hidden_states: (tokens, hidden).
            residual: the norm of hidden_states that the layer before has computed, or None.
            per_layer_input: None.
            kwargs: of vLLM; unused.
        """
        attention = self.self_attn
        normed = self.input_layernorm(hidden_states) if residual is None else residual
        qkv, _ = attention.qkv_proj(normed)
        query, key, value = _heads(
            qkv,
            attention.q_norm.weight,
            attention.k_norm.weight,
            attention.rotary_emb.cos_sin_cache,
            positions,
            attention.num_heads,
            attention.num_kv_heads,
            attention.q_norm.variance_epsilon,
        )
        attended, _ = attention.o_proj(attention.attn(query, key, value))
        following = self.following[0].weight if self.following else None
        out, follows = _feed_forward(
            attended,
            hidden_states,
            _weights_of(self, following),
            self.input_layernorm.variance_epsilon,
            self.moe.experts.routed_experts.top_k if self.enable_moe_block else 0,
            self.mlp.down_proj.quant_method.stored.block_size,
        )
        return out, follows if self.following else None


def _is_fusible(layer: Any) -> bool:
    """Return whether the ops compute what a layer does."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = [_single_weight(m) for m in (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)]
    if not all(linears) or layer.per_layer_input_gate is not None or attention.is_kv_shared_layer:
        return False
    if mlp.down_proj.tp_size > 1 or any(m.bias is not None for m in (mlp.gate_up_proj, mlp.down_proj)):
        return False
    if mlp.act_fn.__class__.__name__ != "GeluAndMul" or mlp.act_fn.approximate != "tanh":
        return False
    if layer.enable_moe_block and not _has_fusible_experts(layer.moe.experts.routed_experts):
        return False
    like = layer.input_layernorm.weight
    table = attention.rotary_emb.cos_sin_cache
    read = (*_weights_of(layer, like)[:_NUM_PLAIN], table, attention.q_norm.weight, attention.k_norm.weight)
    same_type = all(t.dtype == like.dtype for t in read)
    return same_type and table.shape[1] == attention.head_dim and attention.head_dim % 64 == 0


def _single_weight(linear: Any) -> bool:
    """Return whether a layer multiplies by one matrix of codes."""
    method = linear.quant_method
    if not isinstance(method, HLWQLinearMethod) or len(method.groups) != 1:
        return False
    return not method.options.is_dense(linear.codes.device)


def _has_fusible_experts(experts: Any) -> bool:
    method, parallel = experts.quant_method, experts.moe_config.moe_parallel_config
    if not isinstance(method, HLWQMoEMethod) or method.slots is not None or method.gate_name != _GATE:
        return False
    return parallel.tp_size == parallel.ep_size == parallel.dp_size == 1 and experts.expert_map is None


class _Weights(NamedTuple):
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
    def unpack(cls, tensors: list[torch.Tensor], block_size: int) -> _Weights:
        """Undo `_weights_of`."""
        coded = []
        for at in range(_NUM_PLAIN, len(tensors), 4):
            codes, scales, base, centroids = tensors[at : at + 4]
            weight = QuantizedWeight(codes, scales, base if base.numel() else None, centroids, block_size)
            coded.append(weight if codes.numel() else None)
        gate_up, down, w13, w2 = coded
        assert gate_up is not None
        assert down is not None
        return cls._make([*tensors[:_NUM_PLAIN], gate_up, down, w13, w2])


def _weights_of(layer: Any, following: torch.Tensor | None) -> list[torch.Tensor]:
    """Return the tensors of `_Weights`: eleven, then codes, scales, base and centroids of four matrices."""
    empty, has_experts = layer.layer_scalar.new_empty(0), layer.enable_moe_block
    tensors = [
        layer.post_attention_layernorm.weight,
        layer.pre_feedforward_layernorm.weight,
        layer.pre_feedforward_layernorm_2.weight if has_experts else empty,
        layer.router.scale if has_experts else empty,
        getattr(layer, "hlwq_router", layer.router.proj.weight) if has_experts else empty,
        layer.moe.per_expert_scale if has_experts else empty,
        layer.post_feedforward_layernorm_1.weight if has_experts else empty,
        layer.post_feedforward_layernorm_2.weight if has_experts else empty,
        layer.post_feedforward_layernorm.weight,
        layer.layer_scalar,
        empty if following is None else following,
    ]
    coded = [m.quant_method.weight(m, m.quant_method.groups[0]) for m in (layer.mlp.gate_up_proj, layer.mlp.down_proj)]
    if has_experts:
        experts = layer.moe.experts.routed_experts
        coded += experts.quant_method.weights(experts)
    for weight in coded:
        tensors += [weight.codes, weight.scales, empty if weight.base is None else weight.base, weight.centroids]
    return tensors + [empty] * (8 if not has_experts else 0)


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
_heads = traceable(_heads_op, _heads_on_device)


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
    w = _Weights.unpack(tensors, block_size)
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
_feed_forward = traceable(_feed_forward_op, _feed_forward_on_device)


@_feed_forward_op.register_fake
def _(
    attended: torch.Tensor, residual: torch.Tensor, tensors: list[torch.Tensor], eps: float, top_k: int, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    follows = torch.empty_like(attended) if tensors[_NUM_PLAIN - 1].numel() else attended.new_empty(0)
    return torch.empty_like(attended), follows


def _dense_and_experts(
    x: torch.Tensor, for_experts: torch.Tensor | None, for_router: torch.Tensor | None, w: _Weights, top_k: int
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


def _dense(x: torch.Tensor, w: _Weights) -> torch.Tensor:
    gate_up = coded_linear(x, *w.gate_up)
    if supports_gate(x, w.down):
        return multiply_codes(gate_up, w.down, None, _GATE)
    return coded_linear(_gated(gate_up), *w.down)


def _experts(x: torch.Tensor, for_router: torch.Tensor, w: _Weights, top_k: int) -> torch.Tensor:
    assert w.w13 is not None
    assert w.w2 is not None
    if len(x) <= MAX_FUSED_TOKENS or not supports_decode_step(x):
        ids, weights = route_topk(for_router, w.router, w.expert_scale, top_k, _SCRATCH)
    else:
        logits = torch.nn.functional.linear(for_router, w.router)
        weights, ids = gemma4.gemma4_fused_routing_kernel_triton(logits, top_k, w.expert_scale)
    return coded_experts(x, ids, weights, w.w13, w.w2, _gated, _GATE)


def _gated(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda:
        out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
        torch.ops._C.gelu_tanh_and_mul(out, x)
        return out
    first, second = x.chunk(2, dim=-1)
    return gelu(first, approximate="tanh") * second
