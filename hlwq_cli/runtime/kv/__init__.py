"""The key/value cache in codes, and the static cache that decode steps use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .attention import cache_argument, code_kv_cache, kv_attention, kv_bits_of
    from .bits import KVBits
    from .cache import CodedLayer, coded_cache
    from .coded_states import GROUP, WINDOW, CodedStates, coded_tokens
    from .position import DecodePosition, StaticDecodeUnsupported
    from .static_cache import StaticCache, bucket

__all__ = [
    "GROUP",
    "WINDOW",
    "CodedLayer",
    "CodedStates",
    "DecodePosition",
    "KVBits",
    "StaticCache",
    "StaticDecodeUnsupported",
    "bucket",
    "cache_argument",
    "code_kv_cache",
    "coded_cache",
    "coded_tokens",
    "kv_attention",
    "kv_bits_of",
]
__getattr__ = lazy_names(
    __name__,
    {
        "attention": (
            "cache_argument",
            "code_kv_cache",
            "kv_attention",
            "kv_bits_of",
        ),
        "bits": ("KVBits",),
        "cache": (
            "CodedLayer",
            "coded_cache",
        ),
        "coded_states": (
            "GROUP",
            "WINDOW",
            "CodedStates",
            "coded_tokens",
        ),
        "position": (
            "DecodePosition",
            "StaticDecodeUnsupported",
        ),
        "static_cache": (
            "StaticCache",
            "bucket",
        ),
    },
)
