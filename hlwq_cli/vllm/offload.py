"""Experts outside the GPU under vLLM: records in host memory, and slots on the GPU that all layers share."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from hlwq_kernels.codes import PartLayout
from hlwq_kernels.common import reads_pinned_memory
from hlwq_kernels.moe import MAX_FUSED_PAIRS, Gate
from hlwq_kernels.offload import ExpertSlots, OffloadedLayer, RecordLayout, SlotCounts, view

from ..errors import UnsupportedError
from ..host_memory import HostMemory

if TYPE_CHECKING:
    from .moe import HLWQMoEMethod

_GRAPHS_HINT = (
    "Give --compilation-config '{{\"cudagraph_capture_sizes\": [1, 2, 4, ...]}}' with sizes of at most {most} tokens, "
    "or --enforce-eager."
)


@dataclass
class _Layer:
    """A layer's records in host memory: see `Records` of the kernels.

    Attributes:
        method: how vLLM runs it.
        layout: of a record.
        memory: holds the records.
        names: of the parts, in the order of the layout.
        runs: what runs it, once the slots are there.
    """

    method: HLWQMoEMethod
    layout: RecordLayout
    memory: HostMemory
    names: tuple[str, ...]
    runs: OffloadedLayer | None = None

    @property
    def records(self) -> torch.Tensor:
        """All records, uint8 (experts, bytes)."""
        return self.memory.bytes.view(-1, self.layout.bytes)

    @property
    def pinned(self) -> torch.Tensor | None:
        """All records if the GPU can read them."""
        return self.records if self.memory.pinned else None

    def read(self, expert: int) -> torch.Tensor:
        """Return one record, uint8 (bytes,)."""
        return self.records[expert]


@dataclass
class SlotPools:
    """All layers of a model whose experts are outside the GPU.

    Attributes:
        layers: by the id of vLLM's layer.
    """

    layers: dict[int, _Layer] = field(default_factory=dict)

    def add(self, layer: Any, method: HLWQMoEMethod, parts: dict[str, PartLayout]) -> None:
        """Make room in host memory for the experts of a layer.

        Args:
            layer: of vLLM.
            method: how vLLM runs it.
            parts: shape and type of each part of all experts: w13's first, then w2's.
        """
        halves = [[(s[1:], t) for name, (s, t) in parts.items() if name.startswith(p)] for p in ("w13_", "w2_")]
        layout = RecordLayout.of(*halves)
        experts = next(iter(parts.values()))[0][0]
        device = torch.get_default_device()
        memory = HostMemory(experts * layout.bytes, pin=device.type == "cuda")
        self.layers[id(layer)] = _Layer(method, layout, memory, tuple(parts))
        layer.register_buffer("w2_weight", torch.empty(0), persistent=False)  # where vLLM looks for the device

    def room(self, layer: Any, name: str) -> torch.Tensor:
        """Return the place of one part of all experts of a layer, in host memory."""
        found = self.layers[id(layer)]
        part = (*found.layout.gate_up, *found.layout.down)[found.names.index(name)]
        return view(found.records, part)

    def build(self, slots: int, layer: Any) -> None:
        """Make the slots for all layers, at the first call."""
        if self.layers[id(layer)].runs is not None:
            return
        device = layer.w2_weight.device
        by_layout: dict[tuple[Any, ...], list[_Layer]] = defaultdict(list)
        for each in self.layers.values():
            by_layout[each.layout, len(each.records), each.method.moe.experts_per_token].append(each)
        for (layout, experts, chosen), layers in by_layout.items():
            itself = reads_pinned_memory(device) and all(each.pinned is not None for each in layers)
            counts = SlotCounts(len(layers), experts, min(slots, experts), min(chosen, experts))
            pool = ExpertSlots(counts, layout, device, itself)
            for number, each in enumerate(layers):
                codebooks, stacks = each.method.stored.codebooks, each.method.stacks
                tables = (codebooks[stacks[0].bits].to(device), codebooks[stacks[1].bits].to(device))
                each.runs = OffloadedLayer(pool, number, each, tables, each.method.stored.block_size)

    def run(
        self,
        layer: Any,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        gate: Gate,
        gate_name: str | None,
    ) -> torch.Tensor:
        """Run a layer from its slots.

        Raises:
            UnsupportedError: a CUDA graph is captured, and the host would have to choose the experts.
        """
        found = self.layers[id(layer)].runs
        assert found is not None
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            most = MAX_FUSED_PAIRS // topk_ids.shape[1]
            if len(x) > most or not found.slots.device_assigns:
                raise UnsupportedError(
                    f"A CUDA graph of {len(x)} tokens cannot fetch experts from host memory.",
                    _GRAPHS_HINT.format(most=most),
                )
        return found.run(x, topk_ids, topk_weights, gate, gate_name)
