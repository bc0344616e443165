"""What a decode step of one token per sequence does between products of weights: norms, RoPE and attention."""

from .attention import decode_attention, qk_norm_rope, qk_norm_rope_append
from .norms import fused_add_rmsnorm_post_ffn, fused_add_rmsnorm_pre_ffn, supports_decode_step
from .reference import (
    decode_attention_reference,
    fused_add_rmsnorm_post_ffn_reference,
    fused_add_rmsnorm_pre_ffn_reference,
    qk_norm_rope_append_reference,
    qk_norm_rope_reference,
)
from .types import DecodeCache, Norm

__all__ = [
    "DecodeCache",
    "Norm",
    "decode_attention",
    "decode_attention_reference",
    "fused_add_rmsnorm_post_ffn",
    "fused_add_rmsnorm_post_ffn_reference",
    "fused_add_rmsnorm_pre_ffn",
    "fused_add_rmsnorm_pre_ffn_reference",
    "qk_norm_rope",
    "qk_norm_rope_append",
    "qk_norm_rope_append_reference",
    "qk_norm_rope_reference",
    "supports_decode_step",
]
