"""Layers of Gemma 4 in few launches: a decode step takes 13 instead of about 50, a prompt half as many.

The modules of transformers' layer keep their weights, and prompts use its attention. This code follows the forward of
transformers, so layers are compared with it before they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from hlwq_kernels.codes import QuantizedWeight
from hlwq_kernels.common import Scratch
from hlwq_kernels.decode_step import (
    DecodeCache,
    Norm,
    decode_attention,
    fused_add_rmsnorm_post_ffn,
    fused_add_rmsnorm_pre_ffn,
    qk_norm_rope_append,
)
from hlwq_kernels.linear import coded_linear, multiply_codes, supports_gate
from hlwq_kernels.moe import route_topk
from hlwq_kernels.offload import OffloadedLayer

from ...kv.static_cache import RingLayer
from ...modules.experts import gate_name_of
from ...modules.linear import HLWQLinear
from ..joined_weights import join_weights, weight_of


def step_layers(model: nn.Module) -> list[StepLayer]:
    """Return step layers of a Gemma 4 without shared caches and per-layer inputs; none for any other model."""
    layers = [m for m in model.modules() if type(m).__name__ == "Gemma4TextDecoderLayer"]
    if not layers or not all(_is_plain(layer) for layer in layers):
        return []
    scratch = Scratch()
    steps = [StepLayer(layer, scratch) for layer in layers]
    for step, following in pairwise(steps):
        step.following = following
    return steps


def _is_plain(layer: Any) -> bool:
    attention = layer.self_attn
    biased = any(m.bias is not None for m in layer.modules() if isinstance(m, nn.Linear))
    shared = attention.is_kv_shared_layer or getattr(layer.config, "num_kv_shared_layers", 0)
    return not (biased or shared or layer.hidden_size_per_layer_input)


class StepLayer:
    """The forward function of one decoder layer.

    Attributes:
        following: the next layer, whose first norm is computed in the same launch; None after the last layer.
    """

    def __init__(self, layer: Any, scratch: Scratch) -> None:
        self.layer, self.scratch = layer, scratch
        self._router_norm: Norm | None = None
        self.following: StepLayer | None = None
        self._handed: tuple[torch.Tensor, torch.Tensor] | None = None
        a, m = layer.self_attn, layer.mlp
        self.heads = [p for p in (a.q_proj, a.k_proj, a.v_proj) if p is not None]
        self.of_heads, self.of_gates = join_weights(self.heads), join_weights([m.gate_proj, m.up_proj])
        down = m.down_proj
        self.of_down = weight_of(down) if isinstance(down, HLWQLinear) and down.dense_weight is None else None
        self.gate_name = gate_name_of(m.act_fn)
        self.first = _norm(layer.input_layernorm)

    def forward(self, hidden_states: torch.Tensor, per_layer_input: None = None, **rest: Any) -> torch.Tensor:
        """Compute hidden states (batch, tokens, hidden), over the decoder's static cache."""
        shape, rows = hidden_states.shape, hidden_states.flatten(0, 1)
        normed = self._normed(hidden_states, rows)
        cache = rest["cache"] if "cache" in rest else rest["past_key_values"]
        ring = cache.layers[self.layer.self_attn.layer_idx]
        if ring.position.prefilling or not isinstance(ring, RingLayer):
            attended = self.layer.self_attn(hidden_states=normed.view(shape), **rest)[0].flatten(0, 1)
        else:
            attended = self._attend(normed, rest["position_embeddings"], rest["attention_mask"], ring)
        out, follows = self._feed_forward(attended, rows)
        out = out.view(shape)
        if self.following is not None and follows is not None:
            self.following._handed = out, follows
        return out

    def _normed(self, hidden_states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        handed, self._handed = self._handed, None
        return handed[1] if handed is not None and handed[0] is hidden_states else self.first.torch(rows)

    def _attend(self, x: torch.Tensor, embeddings: Any, mask: torch.Tensor, ring: Any) -> torch.Tensor:
        a = self.layer.self_attn
        size = a.head_dim
        q, *kv = self._products(x, self.heads, self.of_heads)
        keys, values = kv[0], kv[-1]
        kv_cache = DecodeCache(ring.keys, ring.values, ring.position.slots[ring.size])
        cosines, sines = (t.reshape(len(x), size) for t in embeddings)
        query = qk_norm_rope_append(q, keys, values, _norm(a.q_norm), _norm(a.k_norm), cosines, sines, kv_cache)
        out = decode_attention(query, kv_cache, mask.reshape(len(x), -1), a.scaling, self.scratch)
        projected: torch.Tensor = a.o_proj(out)
        return projected

    def _products(
        self, x: torch.Tensor, linears: Sequence[nn.Module], weight: QuantizedWeight | None
    ) -> tuple[torch.Tensor, ...]:
        if weight is None:
            return tuple(m(x) for m in linears)
        rows = [len(m.get_buffer("codes")) for m in linears]
        return torch.split(coded_linear(x, *weight), rows, dim=-1)

    def _feed_forward(self, attended: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        layer = self.layer
        experts, router = (layer.experts, layer.router) if layer.enable_moe_block else (None, None)
        total, x, for_experts, for_router = fused_add_rmsnorm_pre_ffn(
            attended,
            residual,
            _norm(layer.post_attention_layernorm),
            _norm(layer.pre_feedforward_layernorm),
            None if experts is None else _norm(layer.pre_feedforward_layernorm_2),
            None if router is None else router.scale,
            1.0 if router is None else router.scalar_root_size,
        )
        dense, routed = self._dense_and_experts(x, for_experts, for_router)
        if routed is not None and self.following is not None and len(total) == 1:
            self.following.prefetch(total, self)
        return fused_add_rmsnorm_post_ffn(
            dense,
            routed,
            total,
            None if router is None else _norm(layer.post_feedforward_layernorm_1),
            None if router is None else _norm(layer.post_feedforward_layernorm_2),
            _norm(layer.post_feedforward_layernorm),
            layer.layer_scalar,
            None if self.following is None else self.following.first,
        )

    def _dense_and_experts(
        self, x: torch.Tensor, for_experts: torch.Tensor | None, for_router: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute the dense half and the experts of a layer, in parallel on a GPU."""
        if for_experts is None or for_router is None:
            return self._dense(x), None
        if not x.is_cuda or len(x) > 1:
            return self._dense(x), self._experts(for_experts, for_router)
        here, beside = torch.cuda.current_stream(x.device), self.scratch.side_stream(x.device)
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            dense = self._dense(x)
        routed = self._experts(for_experts, for_router)
        here.wait_stream(beside)
        return dense, routed

    def prefetch(self, total: torch.Tensor, before: StepLayer) -> None:
        """Prefetch the experts that this layer's router chooses for the sum (1, hidden) of the layer before it."""
        experts = (getattr(step.layer, "experts", None) for step in (self, before))
        mine, others = (getattr(module, "offloaded", None) for module in experts)
        if isinstance(mine, OffloadedLayer) and isinstance(others, OffloadedLayer):
            mine.prefetch(self._guess, total, others)

    def _guess(self, total: torch.Tensor) -> torch.Tensor:
        """Return predicted experts (1, k), the likeliest first."""
        router = self.layer.router
        if self._router_norm is None:
            self._router_norm = Norm(router.scale * router.scalar_root_size, router.eps)
        x, k = self._router_norm.torch(total), self.layer.config.top_k_experts
        return route_topk(x, router.proj.weight, router.per_expert_scale, k, self.scratch.for_side_stream())[0]

    def _experts(self, x: torch.Tensor, for_router: torch.Tensor) -> torch.Tensor:
        router = self.layer.router
        chosen, weights = route_topk(
            for_router, router.proj.weight, router.per_expert_scale, self.layer.config.top_k_experts, self.scratch
        )
        routed: torch.Tensor = self.layer.experts(x, chosen, weights)
        return routed

    def _dense(self, x: torch.Tensor) -> torch.Tensor:
        m = self.layer.mlp
        if self.of_gates is not None and self.of_down is not None and self.gate_name and supports_gate(x, self.of_down):
            return multiply_codes(coded_linear(x, *self.of_gates), self.of_down, None, self.gate_name)
        gate, up = self._products(x, [m.gate_proj, m.up_proj], self.of_gates)
        out: torch.Tensor = m.down_proj(m.act_fn(gate) * up)
        return out


def _norm(module: Any) -> Norm:
    return Norm(module._parameters.get("weight"), module.eps)
