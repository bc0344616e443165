"""Traffic of experts outside the GPU during decoding, and the limit that the copies alone set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..runtime.offload import ExpertCache, Tier, Traffic

_COPY_BYTES = 2**26
_NUM_COPIES = 4


@dataclass(frozen=True)
class ExpertTraffic:
    """Figures of a model whose experts have slots on its device.

    Attributes:
        slots: experts of each layer that are on the device.
        experts: experts of each layer.
        layers: number of layers with experts.
        outside_bytes: size of all experts.
        tier: where all experts are: in `host` memory, or in the `files`.
        hit_rate: fraction of the experts needed by decoded tokens that were on the device.
        token_bytes: bytes fetched per decoded token after its experts were known.
        ahead_bytes: bytes prefetched per decoded token, of predicted experts.
        copy_rate: measured bytes per second from pinned host memory to the GPU; 0 on the CPU.
        copy_bound: tokens per second if copying all these bytes were the only cost; None if nothing is copied.
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
    """Return the figures of decoding.

    Args:
        cache: the cache of experts.
        fetched: traffic counted before the prompts, after the prompts, and after the answers.
        tokens: number of decoded tokens.
    """
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
    """Return bytes per second from pinned host memory to a GPU, the best of several copies; 0 on the CPU."""
    if device.type != "cuda":
        return 0.0
    host = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    seconds = []
    for _ in range(_NUM_COPIES):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        target.copy_(host, non_blocking=True)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return _COPY_BYTES / min(seconds)
