"""Experts that are offloaded from the GPU, and the memory that a model takes there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .budget import ExpertBudget
    from .expert_cache import ExpertCache, Tier, Traffic, expert_cache_of
    from .memory import host_memory_free, memory_held
    from .memory_budget import TOKENS, MemoryEstimate
    from .placement import experts_per_token, offload_experts

__all__ = [
    "TOKENS",
    "ExpertBudget",
    "ExpertCache",
    "MemoryEstimate",
    "Tier",
    "Traffic",
    "expert_cache_of",
    "experts_per_token",
    "host_memory_free",
    "memory_held",
    "offload_experts",
]
__getattr__ = lazy_names(
    __name__,
    {
        "budget": ("ExpertBudget",),
        "expert_cache": (
            "ExpertCache",
            "Tier",
            "Traffic",
            "expert_cache_of",
        ),
        "memory": (
            "host_memory_free",
            "memory_held",
        ),
        "memory_budget": (
            "TOKENS",
            "MemoryEstimate",
        ),
        "placement": (
            "experts_per_token",
            "offload_experts",
        ),
    },
)
