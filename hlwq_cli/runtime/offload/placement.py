"""Giving a model its experts: some of each layer in slots on the GPU, all of them in host memory or in files."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from hlwq_kernels.common import reads_pinned_memory
from hlwq_kernels.offload import ExpertSlots, OffloadedLayer, RecordLayout, SlotCounts

from ...errors import UnsupportedError
from ..modules.experts import HLWQExperts
from ..modules.format import QuantFormat
from ..modules.names import PARAMETERS
from .budget import ExpertBudget
from .expert_cache import ExpertCache, Tier, set_expert_cache
from .expert_files import FileRecords, HostRecords, OffloadedExperts, fill
from .memory import host_memory_free
from .memory_budget import MemoryEstimate

logger = logging.getLogger("hlwq")
HOST_SPARE = 2**30
"""Bytes of host memory to leave to other processes."""


def offload_experts(model: Any, budget: ExpertBudget) -> None:
    """Give a model that was loaded inside `offloaded_experts` its experts.

    Raises:
        UnsupportedError: it has no coded experts, or does not say how many of them a token chooses.
        UsageError: the budget is too small.
    """
    offloaded = _offloaded(model)
    modules = {path: model.get_submodule(path) for path in offloaded.parts}
    if not modules:
        raise UnsupportedError(
            f"{model.name_or_path} has no coded experts that could be offloaded.",
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
    set_expert_cache(model, cache)
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
    """Return how many experts a token chooses, whatever the config calls it.

    Raises:
        UnsupportedError: the config has none of the known names.
    """
    text = config.get_text_config()
    found = next((n for name in _PER_TOKEN if isinstance(n := getattr(text, name, None), int)), None)
    if found is None:
        raise UnsupportedError("The model's config does not say how many experts a token chooses.")
    return found
