"""A layer of experts whose records lie outside the device: the results of `coded_experts`, to the bit.

A few tokens bring their experts into the layer's slots, where the kernels read them; more than have room there at once
are taken a few tokens at a time. For many tokens each expert that they chose passes once, in waves, through a pair of
buffers: one is filled while the other is multiplied. While a layer's experts are multiplied the link is idle: then the
next layer's likeliest can be fetched, which changes what is found in slots, never what is computed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from ..codes import QuantizedWeight
from ..linear.gemm_small_m import runs_matmul
from ..moe.experts import MAX_FUSED_PAIRS, Gate, Wave, fused_experts, grouped_experts, loop_over_experts
from .expert_layout import RecordLayout
from .slots import (
    AHEAD,
    LayerTable,
    Planned,
    Wanted,
    assign_prefetch_cuda,
    assign_slots_cuda,
    assign_slots_reference,
    fetch_ahead_cuda,
    fetch_cuda,
)

WAVE = 8
"""Experts in each of the two buffers that many tokens' experts pass through."""


class Records(Protocol):
    """A layer's records outside the device."""

    @property
    def pinned(self) -> torch.Tensor | None:
        """All of them, uint8 (experts, bytes), in host memory that the device itself reads; None where it cannot."""

    def read(self, expert: int) -> torch.Tensor:
        """One of them, uint8 (bytes,) in host memory, to be used before the next is read."""


class Slots:
    """Slots for the layers whose records have one layout, with what they share; one forward pass at a time.

    Args:
        layers: how many.
        experts: of a layer.
        slots: of a layer, at least 1.
        scratch: slots for all layers' overflow: best the experts that a token chooses.
        layout: of a record.
        device: where the slots lie.
        device_assigns: whether the device decides what is fetched and fetches it: then all records must be pinned.

    Attributes:
        records: uint8 (layers * slots + scratch, bytes).
        counters: int64 (4,): experts wanted by steps, experts that were missing, bytes fetched for them, and bytes
            fetched ahead.
        streamed: bytes that have passed in waves.
        lock: held while a layer runs.
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        slots: int,
        scratch: int,
        layout: RecordLayout,
        device: torch.device,
        device_assigns: bool,
    ) -> None:
        self.layout, self.device, self.device_assigns = layout, device, device_assigns
        self.experts, self.slots, self.scratch = experts, slots, scratch
        place = device if device_assigns else torch.device("cpu")
        self._slot_of = torch.full((layers, experts), -1, dtype=torch.int32, device=place)
        self._expert_in = torch.full((layers, slots), -1, dtype=torch.int32, device=place)
        self._scores = torch.zeros((layers, experts), dtype=torch.int32, device=place)
        self.counters = torch.zeros(4, dtype=torch.int64, device=place)
        self.wanted, self.wanted_ahead = (
            Wanted(*(torch.zeros(shape, dtype=torch.int32, device=place) for shape in ((count, 2), (1,))))
            for count in (slots + scratch, AHEAD)
        )
        # zeros, because numbers that are no expert's are multiplied by what lies in the first slot, times zero
        self.records = torch.zeros((layers * slots + scratch, layout.bytes), dtype=torch.uint8, device=device)
        self.buffers = torch.empty((2, min(WAVE, experts), layout.bytes), dtype=torch.uint8, device=device)
        self.streamed = 0
        self.lock = threading.Lock()
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last = torch.cuda.current_stream(device) if device.type == "cuda" else None
        if self._copying is not None:
            self._copying.wait_stream(torch.cuda.current_stream(device))
        self._used: list[torch.cuda.Event | None] = [None, None]
        self._beside = torch.cuda.Stream(device) if self._copying is not None and device_assigns else None
        self._read_beside: torch.Tensor | None = None

    def table(self, layer: int) -> LayerTable:
        """A layer's, to be changed."""
        tables = self._slot_of[layer], self._expert_in[layer], self._scores[layer]
        return LayerTable(*tables, layer * self.slots, len(self._expert_in) * self.slots)

    @property
    def room(self) -> int:
        """Pairs of a token and an expert whose experts are sure to find places at once."""
        most = self.slots + self.scratch
        return most if most < self.experts else 2**62

    def go_on(self) -> None:
        """Wait, on the current stream, for what was queued beside, and for the stream that a layer ran on last.

        Threads may have streams of their own.
        """
        if self._last is None:
            return
        stream = torch.cuda.current_stream(self.device)
        if self._beside is not None and self._read_beside is not None:
            stream.wait_stream(self._beside)
            self._read_beside = None
        if stream != self._last and not torch.cuda.is_current_stream_capturing():
            stream.wait_stream(self._last)
            self._last = stream

    @contextmanager
    def beside(self, after: torch.cuda.Event | None, x: torch.Tensor) -> Iterator[None]:
        """Within, work is queued on a stream of its own, behind an event; the next layer that runs waits for it.

        Until then `x` is kept, which that work reads: its memory belongs to another stream.
        """
        if self._beside is None or after is None:
            yield
            return
        self._beside.wait_event(after)
        self._read_beside = x
        with torch.cuda.stream(self._beside):
            yield

    def waves(self, experts: list[int], records: Records) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Experts, and their records on the device, (experts, bytes); the next ones are copied meanwhile."""
        size = self.buffers.shape[1]
        waves = [experts[first : first + size] for first in range(0, len(experts), size)]
        self.streamed += len(experts) * self.layout.bytes
        arrived = self._send(waves[0], records, 0) if waves else None
        for i, wave in enumerate(waves):
            following = self._send(waves[i + 1], records, (i + 1) % 2) if i + 1 < len(waves) else None
            if arrived is not None:
                torch.cuda.current_stream(self.device).wait_event(arrived)
            yield wave, self.buffers[i % 2][: len(wave)]
            if self._copying is not None:
                self._used[i % 2] = torch.cuda.current_stream(self.device).record_event()
            arrived = following

    def _send(self, wave: list[int], records: Records, buffer: int) -> torch.cuda.Event | None:
        """Copy records into a buffer once it is free: on a stream of its own, where the host need not wait."""
        into, pinned = self.buffers[buffer], records.pinned
        if pinned is None or self._copying is None:
            for place, expert in enumerate(wave):
                into[place].copy_(records.read(expert))
            return None
        with torch.cuda.stream(self._copying):
            if (used := self._used[buffer]) is not None:
                self._copying.wait_event(used)
            if wave[-1] - wave[0] + 1 == len(wave):
                into[: len(wave)].copy_(pinned[wave[0] : wave[-1] + 1], non_blocking=True)
            else:
                for place, expert in enumerate(wave):
                    into[place].copy_(pinned[expert], non_blocking=True)
            event: torch.cuda.Event = self._copying.record_event()
            return event


class OffloadedLayer:
    """One layer of experts.

    Args:
        slots: shared with other layers.
        number: of this layer among them.
        records: its experts.
        centroids: of its two matrices, on the device.
        block_size: n.
    """

    def __init__(
        self, slots: Slots, number: int, records: Records, centroids: tuple[torch.Tensor, torch.Tensor], block_size: int
    ) -> None:
        self.slots, self.records = slots, records
        self.centroids, self.block_size = centroids, block_size
        self.table = slots.table(number)
        self._fetched: torch.cuda.Event | None = None
        self.gate_up, self.down = self._weights(slots.records)

    def _weights(self, records: torch.Tensor) -> tuple[QuantizedWeight, QuantizedWeight]:
        return self.slots.layout.weights(records, self.centroids, self.block_size)

    def run(
        self, x: torch.Tensor, chosen: torch.Tensor, routed: torch.Tensor, gate: Gate, gate_name: str | None
    ) -> torch.Tensor:
        """See `coded_experts`; gradients flow to `x` and `routed`."""
        with self.slots.lock:
            self.slots.go_on()
            self._fetched = None  # that of another step may belong to another capture
            learns = torch.is_grad_enabled() and (x.requires_grad or routed.requires_grad)
            if learns or not runs_matmul(x) or not x.shape[0]:
                return self._run_torch(x, chosen, routed, gate, learns)
            tokens = self.slots.room // chosen.shape[1]
            if chosen.numel() > MAX_FUSED_PAIRS or not tokens:
                return grouped_experts(x, chosen, routed, self.slots.experts, gate, self._waves)
            some = (
                fused_experts(part, self.bring(places), weights, self.gate_up, self.down, gate, gate_name)
                for part, places, weights in zip(
                    x.split(tokens), chosen.split(tokens), routed.split(tokens), strict=True
                )
            )
            return torch.cat(list(some)) if len(x) > tokens else next(some)

    def _run_torch(
        self, x: torch.Tensor, chosen: torch.Tensor, routed: torch.Tensor, gate: Gate, learns: bool
    ) -> torch.Tensor:
        """Products of torch may depend on how many rows there are: tokens stay together, and pass in waves."""
        if learns or chosen.numel() > self.slots.room:
            waves = self._kept_waves if learns else self._waves
            return loop_over_experts(x, chosen, routed, self.slots.experts, gate, waves)
        place = dict(zip(chosen.flatten().tolist(), self.bring(chosen).flatten().tolist(), strict=True))

        def in_slots(present: list[int]) -> Iterator[Wave]:
            for expert in present:
                yield Wave([expert], *self._weights(self.slots.records[place[expert], None]))

        return loop_over_experts(x, chosen, routed, self.slots.experts, gate, in_slots)

    def bring(self, chosen: torch.Tensor) -> torch.Tensor:
        """Bring the experts of (tokens, k) into slots: their numbers, int64 (tokens, k), -1 for those of no expert."""
        slots, chosen = self.slots, chosen.to(torch.int64).contiguous()
        if slots.device_assigns:
            assert self.records.pinned is not None
            places = assign_slots_cuda(chosen, self.table, slots.wanted, slots.counters)
            fetch_cuda(self.records.pinned, slots.records, slots.wanted, slots.counters[2:3])
            if chosen.is_cuda:
                self._fetched = torch.cuda.current_stream(chosen.device).record_event()
            return places
        planned = assign_slots_reference(chosen.cpu(), self.table, slots.counters)
        self._fetch(planned)
        return planned.slots.to(chosen.device)

    def prefetch(self, guess: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, before: OffloadedLayer) -> None:
        """Bring the likeliest of the experts that this layer will choose, while another's are multiplied.

        Nothing happens where the host fetches, or where all experts have slots.

        Args:
            guess: makes of `x` int64 (1, k) experts, the likeliest first; called on the stream of the copies.
            x: by which the layer before chose its own.
            before: the layer whose own copies go first.
        """
        slots = self.slots
        if not slots.device_assigns or slots.slots == slots.experts:
            return
        assert self.records.pinned is not None
        with slots.lock, slots.beside(before._fetched, x):
            assign_prefetch_cuda(guess(x), self.table, slots.wanted_ahead)
            counter = slots.counters[3:4]
            fetch_ahead_cuda(self.records.pinned, slots.records, slots.wanted_ahead, counter)

    def _fetch(self, planned: Planned) -> None:
        for expert, slot in planned.copies.tolist():
            self.slots.records[slot].copy_(self.records.read(expert))
        self.slots.counters[2] += len(planned.copies) * self.slots.layout.bytes

    def _waves(self, present: list[int]) -> Iterator[Wave]:
        for experts, records in self.slots.waves(present, self.records):
            yield Wave(experts, *self._weights(records))

    def _kept_waves(self, present: list[int]) -> Iterator[Wave]:
        """In memory that is not used again, because gradients will ask for it."""
        for wave in self.slots.waves(present, self.records):
            yield Wave(wave[0], *self._weights(wave[1].clone()))
