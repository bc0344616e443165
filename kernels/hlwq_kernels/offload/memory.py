"""What the layers with one record layout share on the device: slots, batch buffers and streams."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from .expert_layout import RecordLayout
from .slots import MAX_PREFETCHED_EXPERTS, CopyList, LayerTable

MAX_BATCH_EXPERTS = 8
"""The most experts in each of the two buffers that the experts of many tokens pass through. Not measured."""


class Records(Protocol):
    """A layer's records outside the device."""

    @property
    def pinned(self) -> torch.Tensor | None:
        """All records, uint8 (experts, bytes), in host memory that the device reads; None where it cannot."""

    def read(self, expert: int) -> torch.Tensor:
        """Return one record, uint8 (bytes,) in host memory. It is valid until the next call."""


@dataclass(frozen=True)
class SlotCounts:
    """How many slots there are, and for what.

    Attributes:
        layers: layers that share them.
        experts: experts of each layer.
        slots: slots of each layer, at least 1.
        scratch: slots for the overflow of all layers; best the number of experts per token.
    """

    layers: int
    experts: int
    slots: int
    scratch: int

    @property
    def total(self) -> int:
        """All slots."""
        return self.layers * self.slots + self.scratch

    @property
    def max_resident_pairs(self) -> int:
        """The most pairs of a token and an expert whose experts are certain to have slots at the same time."""
        most = self.slots + self.scratch
        return most if most < self.experts else 2**62


class ExpertSlots:
    """Slots for the layers whose records have one layout. Only one forward pass may use them at a time.

    Args:
        counts: of slots.
        layout: of a record.
        device: where the slots are.
        device_assigns: whether the device decides what to fetch, and fetches it. Then all records must be pinned.

    Attributes:
        records: uint8 (slots of all layers, then scratch; bytes).
        tables: one per layer: which expert is in which slot.
        counters: int64 (4,): experts that steps needed, experts that were missing, bytes fetched for them, and bytes
            prefetched.
        copy_list: what the device fetches for a step.
        prefetch_list: what the device prefetches.
        buffers: through which the experts of many tokens pass.
        streams: the order of what layers queue.
    """

    def __init__(self, counts: SlotCounts, layout: RecordLayout, device: torch.device, device_assigns: bool) -> None:
        self.counts, self.layout, self.device_assigns = counts, layout, device_assigns
        where = device if device_assigns else torch.device("cpu")
        self.tables = _empty_tables(counts, where)
        self.counters = torch.zeros(4, dtype=torch.int64, device=where)
        self.copy_list = CopyList.empty(counts.slots + counts.scratch, where)
        self.prefetch_list = CopyList.empty(MAX_PREFETCHED_EXPERTS, where)
        # zeros, because an id that is not an expert's is multiplied by the content of the first slot, times zero
        self.records = torch.zeros((counts.total, layout.bytes), dtype=torch.uint8, device=device)
        self.buffers = BatchBuffers(min(MAX_BATCH_EXPERTS, counts.experts), layout.bytes, device)
        self.streams = LayerStreams(device, has_side_stream=device_assigns)

    @property
    def device(self) -> torch.device:
        """Where the slots are."""
        return self.records.device


def _empty_tables(counts: SlotCounts, device: torch.device) -> list[LayerTable]:
    slot_of = torch.full((counts.layers, counts.experts), -1, dtype=torch.int32, device=device)
    expert_in = torch.full((counts.layers, counts.slots), -1, dtype=torch.int32, device=device)
    use_counts = torch.zeros((counts.layers, counts.experts), dtype=torch.int32, device=device)
    scratch = counts.layers * counts.slots
    return [
        LayerTable(slot_of[i], expert_in[i], use_counts[i], i * counts.slots, scratch) for i in range(counts.layers)
    ]


class LayerStreams:
    """The order of what layers queue on several streams; threads may have streams of their own.

    Attributes:
        lock: held while a layer runs.
    """

    def __init__(self, device: torch.device, has_side_stream: bool) -> None:
        is_cuda = device.type == "cuda"
        self.lock = threading.Lock()
        self._device = device
        self._last = torch.cuda.current_stream(device) if is_cuda else None
        self._side = torch.cuda.Stream(device) if is_cuda and has_side_stream else None
        self._read_by_side: torch.Tensor | None = None

    def sync_streams(self) -> None:
        """Make the current stream wait for the side stream and for the stream that a layer last ran on."""
        if self._last is None:
            return
        stream = torch.cuda.current_stream(self._device)
        if self._side is not None and self._read_by_side is not None:
            stream.wait_stream(self._side)
            self._read_by_side = None
        if stream != self._last and not torch.cuda.is_current_stream_capturing():
            stream.wait_stream(self._last)
            self._last = stream

    @contextmanager
    def side_stream(self, after: torch.cuda.Event | None, x: torch.Tensor) -> Iterator[None]:
        """Queue the work inside this context on a side stream, after an event. The next layer that runs waits for it.

        The work reads `x`, whose memory belongs to another stream. So `x` is kept until then.
        """
        if self._side is None or after is None:
            yield
            return
        self._side.wait_event(after)
        self._read_by_side = x
        with torch.cuda.stream(self._side):
            yield


class BatchBuffers:
    """Two buffers that records pass through in batches: one is filled while the other one is used.

    Args:
        size: records in a buffer.
        record_bytes: bytes of a record.
        device: where the buffers are.

    Attributes:
        bytes_streamed: bytes that have passed so far.
    """

    def __init__(self, size: int, record_bytes: int, device: torch.device) -> None:
        self.records = torch.empty((2, size, record_bytes), dtype=torch.uint8, device=device)
        self.bytes_streamed = 0
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._used: list[torch.cuda.Event | None] = [None, None]
        if self._copy_stream is not None:
            self._copy_stream.wait_stream(torch.cuda.current_stream(device))

    def batches(self, experts: list[int], records: Records) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield experts and their records on the device, (experts, bytes), while the next batch is copied."""
        _, size, record_bytes = self.records.shape
        batches = [experts[first : first + size] for first in range(0, len(experts), size)]
        self.bytes_streamed += len(experts) * record_bytes
        arrived = self._send(batches[0], records, 0) if batches else None
        for i, batch in enumerate(batches):
            following = self._send(batches[i + 1], records, (i + 1) % 2) if i + 1 < len(batches) else None
            if arrived is not None:
                torch.cuda.current_stream(self.records.device).wait_event(arrived)
            yield batch, self.records[i % 2][: len(batch)]
            if self._copy_stream is not None:
                self._used[i % 2] = torch.cuda.current_stream(self.records.device).record_event()
            arrived = following

    def _send(self, batch: list[int], records: Records, buffer: int) -> torch.cuda.Event | None:
        """Copy records into a buffer once it is free: on a stream of its own if the host need not wait."""
        into, pinned = self.records[buffer], records.pinned
        if pinned is None or self._copy_stream is None:
            for i, expert in enumerate(batch):
                into[i].copy_(records.read(expert))
            return None
        with torch.cuda.stream(self._copy_stream):
            if (used := self._used[buffer]) is not None:
                self._copy_stream.wait_event(used)
            if batch[-1] - batch[0] + 1 == len(batch):
                into[: len(batch)].copy_(pinned[batch[0] : batch[-1] + 1], non_blocking=True)
            else:
                for i, expert in enumerate(batch):
                    into[i].copy_(pinned[expert], non_blocking=True)
            event: torch.cuda.Event = self._copy_stream.record_event()
            return event
