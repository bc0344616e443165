"""What experts outside the GPU cost while tokens are decoded, and what copying alone would allow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..runtime.offload.expert_cache import ExpertCache, Tier, Traffic

_COPY = 2**26
_COPIES = 4


@dataclass(frozen=True)
class ExpertTraffic:
    """A model whose experts have slots on its device.

    Attributes:
        slots: experts of each layer there.
        experts: of each layer.
        layers: how many.
        outside_bytes: of all experts.
        tier: where they lie: in `host` memory, or in the `files`.
        hit_rate: share of the experts that a decoded token needed that were there.
        token_bytes: fetched for a decoded token when its experts were known.
        ahead_bytes: fetched for a decoded token before, of experts that were guessed.
        copy_rate: bytes a second from pinned host memory to the GPU, measured; 0 on the CPU.
        copy_bound: tokens a second that copying all these bytes so fast would allow; None where nothing is copied.
    """

    slots: int
    experts: int
    layers: int
    outside_bytes: int
    tier: Tier
    hit_rate: float
    token_bytes: float
    ahead_bytes: float
    copy_rate: float
    copy_bound: float | None


def expert_traffic(cache: ExpertCache, fetched: Sequence[Traffic], tokens: int) -> ExpertTraffic:
    """Figures of so many decoded tokens, from all fetched before prompts, after them, and after answers."""
    prompts, answers = fetched[1] - fetched[0], fetched[2] - fetched[1]
    rate = copy_rate(cache.groups[0].device)
    token_bytes = max(answers.fetched - prompts.fetched, 0) / tokens
    ahead_bytes = max(answers.ahead - prompts.ahead, 0) / tokens
    copied = token_bytes + ahead_bytes
    missing, wanted = answers.missing - prompts.missing, answers.wanted - prompts.wanted
    return ExpertTraffic(
        slots=cache.slots,
        experts=cache.experts,
        layers=cache.layers,
        outside_bytes=cache.outside_bytes,
        tier=cache.tier,
        hit_rate=1 - max(missing, 0) / max(wanted, 1),
        token_bytes=token_bytes,
        ahead_bytes=ahead_bytes,
        copy_rate=rate,
        copy_bound=rate / copied if rate and copied else None,
    )


def copy_rate(device: torch.device) -> float:
    """Bytes a second from pinned host memory to a GPU, the best of a few copies; 0 on the CPU."""
    if device.type != "cuda":
        return 0.0
    host = torch.empty(_COPY, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(_COPY, dtype=torch.uint8, device=device)
    seconds = []
    for _ in range(_COPIES):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        there.copy_(host, non_blocking=True)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return _COPY / min(seconds)
