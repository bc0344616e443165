"""Attention over a quantized cache, registered with transformers under the name "hlwq".

`code_kv_cache` switches a model to it, and gives each forward pass a cache in codes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache

from hlwq_kernels.attention import AttentionParams, QuantizedKV, attend

from ...errors import UnsupportedError
from ..transformers_private import attention_of, cache_name, replace_layers, sdpa_mask, supply_cache
from .bits import KVBits
from .cache import CodedLayer, coded_cache
from .coded_states import CodedStates
from .static_cache import StaticCache
from .step_attention import step_attention

NAME = "hlwq"
_ATTR = "_hlwq_kv_bits"
_UNKNOWN = ("s_aux", "position_bias", "head_mask")
"""Arguments of other attentions that this one does not support: sinks, learned biases."""


def kv_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | CodedStates,
    value: torch.Tensor | CodedStates,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over codes if the layer's cache holds codes, else with torch's attention.

    Raises:
        UnsupportedError: the model's attention has an argument that is not supported over codes.
    """
    unknown = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if unknown:
        raise UnsupportedError(
            f"This model's attention uses {', '.join(unknown)}.", "Run it without a quantized cache."
        )
    if isinstance(key, torch.Tensor) and isinstance(value, torch.Tensor) and not softcap:
        return step_attention(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    params = AttentionParams(
        query.shape[-1] ** -0.5 if scaling is None else scaling, softcap or 0.0, attention_mask, causal
    )
    keys, values, seen = _cached(key, value, query.shape[-2])
    return attend(query, keys, values, seen, params).transpose(1, 2).contiguous(), None


def _cached(key: Any, value: Any, queries: int) -> tuple[QuantizedKV, QuantizedKV, torch.Tensor]:
    """Return keys, values, and how many codes each query sees: none if the layer is dense."""
    if isinstance(key, CodedStates):
        return key.tokens, value.tokens, key.seen
    return QuantizedKV.dense(key), QuantizedKV.dense(value), torch.zeros(queries, dtype=torch.int64)


def code_kv_cache(model: Any, bits: KVBits) -> None:
    """Make every forward pass of a transformers model store its keys and values in codes.

    A pass without a cache gets one for that pass. An empty `DynamicCache`, such as `generate` makes, gets layers that
    hold codes. A cache of `coded_cache` is used as it is.

    Raises:
        UnsupportedError: the model's attention cannot be replaced, or it has no full-attention layer.
    """
    coded_cache(model.config, bits)  # raises if there is nothing to quantize
    _switch_attention(model)
    supply_cache(model, partial(_in_codes, bits))
    setattr(model, _ATTR, bits)


def kv_bits_of(model: Any) -> KVBits | None:
    """Return the widths of a model's quantized cache; None if it is not quantized."""
    bits: KVBits | None = getattr(model, _ATTR, None)
    return bits


def cache_argument(model: Any, cache: Cache) -> dict[str, Cache]:
    """Return a cache under the name of the forward argument: that of transformers 5.17, or of newer versions."""
    return {cache_name(model): cache}


def _in_codes(bits: KVBits, cache: Any, config: Any) -> Cache:
    if cache is None:
        return coded_cache(config, bits)
    if any(isinstance(layer, CodedLayer) for layer in getattr(cache, "layers", ())):
        return cache  # type: ignore[no-any-return]
    if isinstance(cache, StaticCache) and cache.bits == bits:
        return cache
    if type(cache) is not DynamicCache or cache.get_seq_length():
        raise UnsupportedError(
            f"This model's cache is quantized, and a {type(cache).__name__} is not.",
            "Pass no cache, or load the model without kv_cache_nbits.",
        )
    replace_layers(cache, coded_cache(config, bits).layers)
    return cache


def _switch_attention(model: Any) -> None:
    AttentionInterface.register(NAME, kv_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    text = model.config.get_text_config(decoder=True)
    part = next((key for key in model.config.sub_configs if getattr(model.config, key, None) is text), None)
    try:
        model.set_attn_implementation({part: NAME} if part else NAME)
    except ValueError as error:
        raise UnsupportedError(f"This model's attention cannot read codes: {error}") from error
    if attention_of(text) != NAME:
        raise UnsupportedError("This model's attention cannot be replaced by one that reads codes.")
