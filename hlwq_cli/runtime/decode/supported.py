"""Which models can be decoded on static buffers."""

from __future__ import annotations

from typing import Any

import torch

from ..kv.attention import NAME as CODES
from ..kv.attention import kv_bits_of
from ..kv.position import StaticDecodeUnsupported
from ..kv.static_cache import StaticCache
from ..modules.experts import HLWQExperts
from ..transformers_private import attention_of, has_own_positions, is_experts_module


def check_supported(model: Any) -> None:
    """Raise StaticDecodeUnsupported with the reason, if a model cannot be decoded on a static cache."""
    refuse_adapters(model)
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        raise StaticDecodeUnsupported("it has an encoder")
    if attention_of(config) not in ("sdpa", "eager", CODES):
        raise StaticDecodeUnsupported(f"its attention is {attention_of(config)}")
    if has_own_positions(type(model)):
        raise StaticDecodeUnsupported("it computes position ids in its own way")
    if len({p.device for p in model.parameters()}) > 1:
        raise StaticDecodeUnsupported("it is on several devices")
    StaticCache(config, 1, 1, model.dtype, torch.device("meta"), kv_bits_of(model))


def refuse_adapters(model: Any) -> None:
    """Raise StaticDecodeUnsupported if a model has adapters.

    Peft wraps a model's layers in place. What a captured graph or a step layer holds would bypass its wrappers.
    """
    if any("base_layer" in module._modules for module in model.modules()):
        raise StaticDecodeUnsupported("it has adapters")


def experts_choices(model: Any) -> tuple[str | None, ...]:
    """Return transformers' experts implementations that do not synchronize; (None,) where there is no choice.

    `grouped_mm` reads only the chosen experts, but is made for many tokens; `batched_mm` copies them first.
    """
    for module in model.modules():
        coded = isinstance(module, HLWQExperts) and not module.dense
        if is_experts_module(module) and not coded:
            return ("grouped_mm", "batched_mm")
    return (None,)
