"""Decoder layers of Gemma 4 in few launches: a decode step takes 13 per layer, of which 3 are vLLM's attention.

vLLM's compiled layer takes about 30. For one sequence each launch costs more than what it computes. Two custom ops
replace all that is between the products and vLLM's attention, so its compiled graph stays whole. On several GPUs, with
adapters, or where a layer has parts that these ops do not know, vLLM's own layer runs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.models import gemma4

from .gemma4_ops import GATE, NUM_PLAIN, feed_forward, norm_and_rotate_heads
from .linear import HLWQLinearMethod
from .moe import HLWQMoEMethod


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
        query, key, value = norm_and_rotate_heads(
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
        out, follows = feed_forward(
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
    read = (*_weights_of(layer, like)[:NUM_PLAIN], table, attention.q_norm.weight, attention.k_norm.weight)
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
    if not isinstance(method, HLWQMoEMethod) or method.slots is not None or method.gate_name != GATE:
        return False
    return parallel.tp_size == parallel.ep_size == parallel.dp_size == 1 and experts.expert_map is None


def _weights_of(layer: Any, following: torch.Tensor | None) -> list[torch.Tensor]:
    """Return the tensors of `LayerWeights`: eleven, then codes, scales, base and centroids of four matrices."""
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
