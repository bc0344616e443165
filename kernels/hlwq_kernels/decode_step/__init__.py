"""What a decode step of one token a sequence does between products of weights: norms, RoPE and attention."""

from .attention import DecodeCache, decode_attention, qk_norm_rope_append
from .norms import Norm, fused_add_rmsnorm_post_ffn, fused_add_rmsnorm_pre_ffn, supports_decode_step

__all__ = [
    "DecodeCache",
    "Norm",
    "decode_attention",
    "fused_add_rmsnorm_post_ffn",
    "fused_add_rmsnorm_pre_ffn",
    "qk_norm_rope_append",
    "supports_decode_step",
]
