"""Mixtures of experts: products with the experts of each token, and their weighted sum."""

from .combine import combine_expert_outputs
from .experts import (
    MAX_FUSED_PAIRS,
    ExpertBatch,
    Gate,
    coded_experts,
    coded_experts_reference,
    fused_experts,
    grouped_experts,
    loop_over_experts,
)

__all__ = [
    "MAX_FUSED_PAIRS",
    "ExpertBatch",
    "Gate",
    "coded_experts",
    "coded_experts_reference",
    "combine_expert_outputs",
    "fused_experts",
    "grouped_experts",
    "loop_over_experts",
]
