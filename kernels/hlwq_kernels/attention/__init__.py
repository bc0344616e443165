"""Attention over a quantized key/value cache, and the encoder of that cache."""

from .dispatch import attend
from .kv_encode import encode_kv, encode_kv_reference
from .kv_states import QuantizedKV, decode_kv
from .kv_tables import KVTables, padded_dim
from .reference import AttentionParams, attend_reference

__all__ = [
    "AttentionParams",
    "KVTables",
    "QuantizedKV",
    "attend",
    "attend_reference",
    "decode_kv",
    "encode_kv",
    "encode_kv_reference",
    "padded_dim",
]
