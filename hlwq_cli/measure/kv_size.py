"""What a token of the past takes in a key/value cache of codes, and what it would take dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..runtime.kv.attention import cache_argument
from ..runtime.kv.bits import KVBits
from ..runtime.kv.cache import GROUP, WINDOW, CodedLayer, coded_cache


@dataclass(frozen=True)
class KVCacheSize:
    """Bytes of one token of one sequence, in the layers that hold codes, all of them together.

    Attributes:
        bits: widths of keys and values, as in `KVBits`.
        layers: how many layers hold codes.
        token_bytes: codes and scales of a token.
        dense_token_bytes: keys and values of a token in the model's type.
        window: newest tokens that are always exact.
        group: tokens that are coded at once, when they have left the window.
    """

    bits: str
    layers: int
    token_bytes: int
    dense_token_bytes: int
    window: int
    group: int


def kv_cache_size(model: Any, bits: KVBits) -> KVCacheSize:
    """Read one token and look at what is held."""
    cache = coded_cache(model.config, bits)
    with torch.inference_mode():
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), **cache_argument(model, cache))
    layers = [layer for layer in cache.layers if isinstance(layer, CodedLayer)]
    return KVCacheSize(
        bits=str(bits),
        layers=len(layers),
        token_bytes=sum(layer.token_bytes for layer in layers),
        dense_token_bytes=sum(layer.dense_token_bytes for layer in layers),
        window=WINDOW,
        group=GROUP,
    )
