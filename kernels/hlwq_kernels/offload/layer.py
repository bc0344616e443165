"""A layer of experts whose records are kept off the device: the results of `coded_experts`, to the bit.

For a few tokens, the experts are copied into the layer's slots, where the kernels read them. Tokens whose experts do
not fit at the same time are processed in groups. For many tokens, each expert that they route to passes once, in
batches, through a pair of buffers: one is filled while the other is multiplied. While the experts of a layer are
multiplied, the link to the host is idle. Then the likeliest experts of the next layer can be prefetched. That changes
what is found in slots, never what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..codes import QuantizedWeight
from ..linear import supports_gemm_small_m
from ..moe import MAX_FUSED_PAIRS, ExpertBatch, Gate, fused_experts, grouped_experts, loop_over_experts
from .memory import ExpertSlots, Records
from .slots import (
    SlotAssignment,
    assign_prefetch_cuda,
    assign_slots_cuda,
    assign_slots_reference,
    fetch_cuda,
    prefetch_cuda,
)


class OffloadedLayer:
    """One layer of experts.

    Args:
        slots: shared with other layers.
        number: of this layer among them.
        records: its experts.
        centroids: of its two matrices, on the device.
        block_size: n.

    Attributes:
        table: which of its experts are in which slots.
        gate_up: the first matrices of the experts in all slots.
        down: the second matrices.
    """

    def __init__(
        self,
        slots: ExpertSlots,
        number: int,
        records: Records,
        centroids: tuple[torch.Tensor, torch.Tensor],
        block_size: int,
    ) -> None:
        self.slots, self.records = slots, records
        self.centroids, self.block_size = centroids, block_size
        self.table = slots.tables[number]
        self._fetched: torch.cuda.Event | None = None
        self.gate_up, self.down = self._weights(slots.records)

    def _weights(self, records: torch.Tensor) -> tuple[QuantizedWeight, QuantizedWeight]:
        return self.slots.layout.weights(records, self.centroids, self.block_size)

    def run(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        gate: Gate,
        gate_name: str | None,
    ) -> torch.Tensor:
        """Compute `coded_experts`; gradients flow to `x` and `topk_weights`."""
        slots = self.slots
        with slots.streams.lock:
            slots.streams.sync_streams()
            self._fetched = None  # the event of another step may belong to another capture
            learns = torch.is_grad_enabled() and (x.requires_grad or topk_weights.requires_grad)
            if learns or not supports_gemm_small_m(x) or not x.shape[0]:
                return self._run_reference(x, topk_ids, topk_weights, gate, learns)
            tokens = slots.counts.max_resident_pairs // topk_ids.shape[1]
            if topk_ids.numel() > MAX_FUSED_PAIRS or not tokens:
                return grouped_experts(x, topk_ids, topk_weights, slots.counts.experts, gate, self._expert_batches)
            parts = (
                fused_experts(part, self.ensure_resident(ids), weights, self.gate_up, self.down, gate, gate_name)
                for part, ids, weights in zip(
                    x.split(tokens), topk_ids.split(tokens), topk_weights.split(tokens), strict=True
                )
            )
            return torch.cat(list(parts)) if len(x) > tokens else next(parts)

    def _run_reference(
        self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, gate: Gate, learns: bool
    ) -> torch.Tensor:
        """Run the reference. Products of torch may depend on the number of rows, so all tokens stay together."""
        experts = self.slots.counts.experts
        if learns or topk_ids.numel() > self.slots.counts.max_resident_pairs:
            batches = self._kept_batches if learns else self._expert_batches
            return loop_over_experts(x, topk_ids, topk_weights, experts, gate, batches)
        slot_of = dict(zip(topk_ids.flatten().tolist(), self.ensure_resident(topk_ids).flatten().tolist(), strict=True))

        def in_slots(present: list[int]) -> Iterator[ExpertBatch]:
            for expert in present:
                yield ExpertBatch([expert], *self._weights(self.slots.records[slot_of[expert], None]))

        return loop_over_experts(x, topk_ids, topk_weights, experts, gate, in_slots)

    def ensure_resident(self, topk_ids: torch.Tensor) -> torch.Tensor:
        """Copy the experts of (tokens, k) ids into slots.

        Returns:
            int64 (tokens, k): the slot of each, and -1 for an id that is not an expert's.
        """
        slots, topk_ids = self.slots, topk_ids.to(torch.int64).contiguous()
        if slots.device_assigns:
            assert self.records.pinned is not None
            assigned = assign_slots_cuda(topk_ids, self.table, slots.copy_list, slots.counters)
            fetch_cuda(self.records.pinned, slots.records, slots.copy_list, slots.counters[2:3])
            if topk_ids.is_cuda:
                self._fetched = torch.cuda.current_stream(topk_ids.device).record_event()
            return assigned
        assignment = assign_slots_reference(topk_ids.cpu(), self.table, slots.counters)
        self._fetch(assignment)
        return assignment.slots.to(topk_ids.device)

    def prefetch(
        self, predict: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, before: OffloadedLayer
    ) -> None:
        """Copy the likeliest of this layer's next experts into slots, while another layer's are multiplied.

        Does nothing where the host fetches, or where all experts have slots.

        Args:
            predict: from `x` to int64 (1, k) experts, the likeliest first; called on the stream of the copies.
            x: from which the layer before took its own experts.
            before: the layer whose own copies go first.
        """
        slots = self.slots
        if not slots.device_assigns or slots.counts.slots == slots.counts.experts:
            return
        assert self.records.pinned is not None
        with slots.streams.lock, slots.streams.side_stream(before._fetched, x):
            assign_prefetch_cuda(predict(x), self.table, slots.prefetch_list)
            prefetch_cuda(self.records.pinned, slots.records, slots.prefetch_list, slots.counters[3:4])

    def _fetch(self, assignment: SlotAssignment) -> None:
        for expert, slot in assignment.copies.tolist():
            self.slots.records[slot].copy_(self.records.read(expert))
        self.slots.counters[2] += len(assignment.copies) * self.slots.layout.bytes

    def _expert_batches(self, present: list[int]) -> Iterator[ExpertBatch]:
        for experts, records in self.slots.buffers.batches(present, self.records):
            yield ExpertBatch(experts, *self._weights(records))

    def _kept_batches(self, present: list[int]) -> Iterator[ExpertBatch]:
        """Yield batches in memory that is not reused, because gradients need it."""
        for experts, records in self.slots.buffers.batches(present, self.records):
            yield ExpertBatch(experts, *self._weights(records.clone()))
