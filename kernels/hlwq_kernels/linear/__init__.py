"""Products of activations with coded weights."""

from .gemm_small_m import MAX_FUSED_TOKENS, multiply_codes, supports_gate, supports_gemm_small_m
from .gemv import GATES, Shape, lay_out, moe_gemv_down, moe_gemv_up, supports_moe_gemv_down
from .linear import coded_linear, coded_linear_reference, rotate_activation

__all__ = [
    "GATES",
    "MAX_FUSED_TOKENS",
    "Shape",
    "coded_linear",
    "coded_linear_reference",
    "lay_out",
    "moe_gemv_down",
    "moe_gemv_up",
    "multiply_codes",
    "rotate_activation",
    "supports_gate",
    "supports_gemm_small_m",
    "supports_moe_gemv_down",
]
