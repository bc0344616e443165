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
from .reference import combine_expert_outputs_reference, route_topk_reference
from .router import route_topk

__all__ = [
    "MAX_FUSED_PAIRS",
    "ExpertBatch",
    "Gate",
    "coded_experts",
    "coded_experts_reference",
    "combine_expert_outputs",
    "combine_expert_outputs_reference",
    "fused_experts",
    "grouped_experts",
    "loop_over_experts",
    "route_topk",
    "route_topk_reference",
]
