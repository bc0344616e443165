"""Experts outside the GPU: slots there for some of each layer; all lie in host memory, or in files where it lacks."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from hlwq_kernels.common.cuda_kernel import reads_pinned_memory
from hlwq_kernels.offload import ExpertSlots, OffloadedLayer, RecordLayout, SlotCounts

from ...errors import UnsupportedError, UsageError
from ...sizes import format_size, parse_size
from ..modules.experts import HLWQExperts
from ..modules.format import QuantFormat
from ..modules.names import PARAMETERS
from .expert_files import FileRecords, HostRecords, OffloadedExperts, fill
from .memory import host_memory_free
from .memory_budget import MemoryEstimate

logger = logging.getLogger("hlwq")
HOST_SPARE = 2**30
"""Bytes of host memory to leave to others."""
_ATTR = "_hlwq_expert_cache"

Tier = Literal["host", "files"]


@dataclass(frozen=True)
class ExpertBudget:
    """How much room experts get on the GPU: exactly one is set.

    Attributes:
        slots: experts of each layer.
        gpu_memory: bytes that the whole process may take there.
    """

    slots: int | None = None
    gpu_memory: int | None = None

    @classmethod
    def parse(cls, slots: int | None, gpu_memory: str | int | None) -> ExpertBudget | None:
        """What a user asked for; None where that is nothing.

        Raises:
            UsageError: both, or no number that can be meant.
        """
        if slots is None and gpu_memory is None:
            return None
        if slots is not None and gpu_memory is not None:
            raise UsageError("expert_cache_slots and gpu_memory both say how many experts to hold.", "Give one.")
        if slots is not None and slots < 1:
            raise UsageError(f"{slots} slots hold no expert.", "Give at least 1.")
        return cls(slots, None if gpu_memory is None else parse_size(str(gpu_memory)))


@dataclass(frozen=True)
class Traffic:
    """What has been fetched.

    Attributes:
        wanted: experts that steps needed, one a layer and step counted once.
        missing: those that were not in a slot.
        fetched: bytes of them.
        streamed: bytes that passed in waves, for prompts.
        ahead: bytes of experts that were only guessed to be needed.
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
    """What a model holds of its experts where.

    Attributes:
        slots: experts of each layer on the GPU.
        experts: of each layer.
        layers: how many.
        record_bytes: of the largest expert.
        outside_bytes: of all experts.
        tier: where they lie.
        estimate: what else the GPU holds, where it was asked to stay below a number of bytes.
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
        """All until now; waits for the GPU."""
        counters = zip(*(g.counters.tolist() for g in self.groups), strict=True)
        wanted, missing, fetched, ahead = (sum(n) for n in counters)
        return Traffic(wanted, missing, fetched, sum(g.buffers.bytes_streamed for g in self.groups), ahead)

    def line(self) -> str:
        """What is where, in one sentence."""
        where = "pinned host memory" if self.groups[0].device.type == "cuda" else "host memory"
        place = where if self.tier == "host" else "the checkpoint's files, as host memory is short"
        text = (
            f"{self.slots} of {self.experts} experts in each of {self.layers} layers have slots on "
            f"{self.groups[0].device}; all, {format_size(self.outside_bytes)}, lie in {place}"
        )
        return f"{text}." if self.estimate is None else f"{text}. {self.estimate.line(self.slots)}"


def expert_cache_of(model: Any) -> ExpertCache | None:
    """A model's, or None where all its experts are on its device."""
    cache: ExpertCache | None = getattr(model, _ATTR, None)
    return cache


def offload_experts(model: Any, budget: ExpertBudget) -> None:
    """Give a model that was loaded under `offloaded_experts` its experts.

    Raises:
        UnsupportedError: it has no coded experts, or does not say how many of them a token chooses.
        UsageError: a size that is too small.
    """
    offloaded = _offloaded(model)
    modules = {path: model.get_submodule(path) for path in offloaded.parts}
    if not modules:
        raise UnsupportedError(
            f"{model.name_or_path} has no coded experts to keep outside the GPU.",
            "Leave expert_cache_slots and gpu_memory out.",
        )
    device: torch.device = model.device
    layouts: dict[RecordLayout, list[str]] = defaultdict(list)
    for path, module in modules.items():
        layouts[module.layout].append(path)
    chosen = experts_per_token(model.config)
    estimate = None if budget.gpu_memory is None else MemoryEstimate.of(model, chosen)
    slots = budget.slots if estimate is None else estimate.slots(budget.gpu_memory or 0)
    experts = max(m.expert_count for m in modules.values())
    slots = min(slots or 1, experts)
    total = sum(m.expert_count * m.layout.bytes for m in modules.values())
    tier: Tier = "host" if total + HOST_SPARE <= host_memory_free() else "files"
    if device.type == "cuda":
        torch.cuda.empty_cache()
    records = _records(modules, offloaded, tier, device)
    groups = []
    for layout, paths in layouts.items():
        itself = reads_pinned_memory(device) and all(records[p].pinned is not None for p in paths)
        count = modules[paths[0]].expert_count
        counts = SlotCounts(len(paths), count, min(slots, count), min(chosen, count))
        groups.append(ExpertSlots(counts, layout, device, itself))
        for number, path in enumerate(paths):
            module, quant_format = modules[path], modules[path].quant_format
            tables = _centroids(quant_format, module, device)
            module.offloaded = OffloadedLayer(groups[-1], number, records[path], tables, quant_format.block_size)
    largest = max(layout.bytes for layout in layouts)
    cache = ExpertCache(slots, experts, len(modules), largest, total, tier, estimate, tuple(groups))
    setattr(model, _ATTR, cache)
    logger.warning(cache.line())


def _offloaded(model: Any) -> OffloadedExperts:
    quantizer = getattr(model, "hf_quantizer", None)
    found: OffloadedExperts = getattr(quantizer, "offloaded", OffloadedExperts({}, (), ()))
    return found


def _centroids(
    quant_format: QuantFormat, module: HLWQExperts, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = (quant_format.centroids(module.bits[parameter], device) for parameter in PARAMETERS)
    return first, second


def _records(
    modules: Mapping[str, HLWQExperts], offloaded: OffloadedExperts, tier: Tier, device: torch.device
) -> dict[str, HostRecords | FileRecords]:
    files, gpu = {}, device.type == "cuda"
    for path, module in modules.items():
        assert module.layout is not None
        files[path] = FileRecords(module.layout, offloaded.parts[path], pin=gpu and tier == "files")
    if tier == "files":
        return dict(files)
    host = {}
    for path, module in modules.items():
        assert module.layout is not None
        host[path] = HostRecords(module.expert_count, module.layout, pin=gpu)
    fill({host[path]: files[path] for path in modules})
    return dict(host)


_PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "num_experts_per_token", "moe_topk", "moe_top_k")


def experts_per_token(config: Any) -> int:
    """How many experts a token chooses, by whichever name a config has for it.

    Raises:
        UnsupportedError: it has none of the names known here.
    """
    text = config.get_text_config()
    found = next((n for name in _PER_TOKEN if isinstance(n := getattr(text, name, None), int)), None)
    if found is None:
        raise UnsupportedError("The model's config does not say how many experts a token chooses.")
    return found
