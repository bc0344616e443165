"""What a model with offloaded experts holds where, and what it has copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hlwq_kernels.offload import ExpertSlots

from ...sizes import format_size
from .memory_budget import MemoryEstimate

Tier = Literal["host", "files"]
_ATTR = "_hlwq_expert_cache"


@dataclass(frozen=True)
class Traffic:
    """What has been copied to the GPU.

    Attributes:
        wanted: experts that steps needed, each counted once per layer and step.
        missing: wanted experts that were not in a slot.
        fetched: bytes of the missing experts.
        streamed: bytes copied in batches, for prompts.
        ahead: bytes of prefetched experts, which were only predicted to be needed.
    """

    wanted: int = 0
    missing: int = 0
    fetched: int = 0
    streamed: int = 0
    ahead: int = 0

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.wanted - other.wanted,
            self.missing - other.missing,
            self.fetched - other.fetched,
            self.streamed - other.streamed,
            self.ahead - other.ahead,
        )


@dataclass(frozen=True)
class ExpertCache:
    """Where a model with offloaded experts holds them.

    Attributes:
        slots: experts of each layer on the GPU.
        experts: of each layer.
        layers: how many.
        record_bytes: of the largest expert.
        outside_bytes: of all experts.
        tier: whether they are in host memory or in the files.
        estimate: what else the GPU holds, if its memory was limited.
        groups: the slots, by layout of an expert.
    """

    slots: int
    experts: int
    layers: int
    record_bytes: int
    outside_bytes: int
    tier: Tier
    estimate: MemoryEstimate | None
    groups: tuple[ExpertSlots, ...]

    def traffic(self) -> Traffic:
        """Return all traffic so far; waits for the GPU."""
        counters = zip(*(g.counters.tolist() for g in self.groups), strict=True)
        wanted, missing, fetched, ahead = (sum(n) for n in counters)
        return Traffic(wanted, missing, fetched, sum(g.buffers.bytes_streamed for g in self.groups), ahead)

    def line(self) -> str:
        """Describe where the experts are, in one sentence."""
        where = "pinned host memory" if self.groups[0].device.type == "cuda" else "host memory"
        storage = where if self.tier == "host" else "the checkpoint's files, because host memory is too small"
        text = (
            f"{self.slots} of {self.experts} experts of each of {self.layers} layers are on "
            f"{self.groups[0].device}; all of them, {format_size(self.outside_bytes)}, are in {storage}"
        )
        return f"{text}." if self.estimate is None else f"{text}. {self.estimate.line(self.slots)}"


def set_expert_cache(model: Any, cache: ExpertCache) -> None:
    """Attach its expert cache to a model."""
    setattr(model, _ATTR, cache)


def expert_cache_of(model: Any) -> ExpertCache | None:
    """Return the expert cache of a model; None if all its experts are on its device."""
    cache: ExpertCache | None = getattr(model, _ATTR, None)
    return cache
