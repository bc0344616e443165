"""Which expert is in which slot: the policy.

A layer owns some of the slots. Scratch slots, which all layers share, take what does not fit in a step. A step never
evicts an expert that it needs. It evicts the expert with the smallest use count. A step takes 1 / 2^SHIFT of each
expert's count away and adds UNIT to the experts that it needs, so older uses count less.

All of this happens on the device where it can (slots.cu). So no step waits for the host, and a CUDA graph can replay
it. The reference decides the same on the host, for the CPU and for records that only the host can read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..common import CudaKernel, Macros, num_sms

SHIFT = 6
"""The best of the shifts 1 to 7, LRU and selective variants on recorded routings: scripts/studies/eviction.py."""
UNIT = 2**20
"""What one use adds to a count: large, so that decayed counts still differ as integers."""
MAX_PREFETCHED_EXPERTS = 1
"""Experts of a layer that are fetched before its router has run. Other work must take longer than their copies, and a
wrong guess costs time, so two were worth less than one: scripts/studies/prefetch.py."""
_THREADS = 256
"""Threads of a CTA that assigns or copies. Not measured against other numbers."""
_FETCH_CTAS = 4
"""CTAs per multiprocessor that copy, so that many reads from the host are under way. Not measured."""
_WARP = 32
_ASSIGN = CudaKernel("offload/slots.cu", name="assign_slots")
_ASSIGN_PREFETCH = CudaKernel("offload/slots.cu", name="assign_prefetch")
_FETCH = CudaKernel("offload/slots.cu", name="fetch")
_PREFETCH = CudaKernel("offload/slots.cu", name="fetch_ahead")


class LayerTable(NamedTuple):
    """The state of a layer's slots, and where they are among all slots: int32, on the device that assigns.

    Attributes:
        slot_of: (experts,), the slot of each expert within the layer, or -1.
        expert_in: (slots,), or -1.
        use_counts: (experts,).
        first: the layer's first slot.
        scratch: the first scratch slot.
    """

    slot_of: torch.Tensor
    expert_in: torch.Tensor
    use_counts: torch.Tensor
    first: int
    scratch: int


class SlotAssignment(NamedTuple):
    """What a step needs.

    Attributes:
        slots: int64, in the shape of `topk_ids`: where each expert will be, -1 for ids that are not an expert's.
        copies: int32 (experts missing, 2): an expert and its slot, experts ascending.
    """

    slots: torch.Tensor
    copies: torch.Tensor


def assign_slots_reference(topk_ids: torch.Tensor, table: LayerTable, counters: torch.Tensor) -> SlotAssignment:
    """Assign slots to the experts of a step; the reference of `assign_slots_cuda`.

    Args:
        topk_ids: int64 (tokens, k).
        table: of the layer; updated.
        counters: int64. The first two entries, experts needed and experts missing, are added to.
    """
    experts = len(table.slot_of)
    known = (topk_ids >= 0) & (topk_ids < experts)
    needed = torch.zeros(experts, dtype=torch.bool)
    needed[topk_ids[known]] = True
    use_counts = table.use_counts
    use_counts -= (use_counts + (2**SHIFT - 1)) >> SHIFT
    use_counts += needed * UNIT
    missing = (needed & (table.slot_of < 0)).nonzero()[:, 0]
    held = table.expert_in.long()
    idle = ((held < 0) | ~needed[held]).nonzero()[:, 0]
    order = torch.where(held < 0, -1, use_counts[held])[idle].argsort(stable=True)
    victims = idle[order][: len(missing)]
    cached = missing[: len(victims)]
    evicted = held[victims]
    table.slot_of[evicted[evicted >= 0]] = -1
    table.slot_of[cached] = victims.int()
    table.expert_in[victims] = cached.int()
    slot = table.slot_of.long() + table.first
    slot[missing[len(victims) :]] = table.scratch + torch.arange(len(missing) - len(victims))
    counters[0] += int(needed.sum())
    counters[1] += len(missing)
    slots = torch.where(known, slot[torch.where(known, topk_ids, 0)], -1)
    return SlotAssignment(slots, torch.stack([missing, slot[missing]], dim=1).int())


class CopyList(NamedTuple):
    """Where an assignment on the device leaves what to copy.

    Attributes:
        copies: int32 (experts, 2): experts and their slots.
        number: int32 (1,): how many rows of `copies` are valid.
    """

    copies: torch.Tensor
    number: torch.Tensor

    @classmethod
    def empty(cls, size: int, device: torch.device) -> CopyList:
        """Return a list with space for `size` experts."""
        return cls(*(torch.zeros(shape, dtype=torch.int32, device=device) for shape in ((size, 2), (1,))))


def assign_slots_cuda(
    topk_ids: torch.Tensor, table: LayerTable, copy_list: CopyList, counters: torch.Tensor
) -> torch.Tensor:
    """Assign slots on a CUDA device without asking the host; returns the slots of `assign_slots_reference`."""
    slots = torch.empty_like(topk_ids)
    experts, own = len(table.slot_of), len(table.expert_in)
    _ASSIGN.launch(
        topk_ids.device,
        slot_macros(experts, own),
        (1,),
        _THREADS,
        topk_ids,
        topk_ids.numel(),
        table.first,
        table.scratch,
        table.slot_of,
        table.expert_in,
        table.use_counts,
        slots,
        copy_list.copies,
        copy_list.number,
        counters,
    )
    return slots


def assign_prefetch_cuda(predicted: torch.Tensor, table: LayerTable, copy_list: CopyList) -> None:
    """Assign slots to some of the experts that a step may need soon, as many as `copy_list` has space for.

    They get the layer's own slots, from the experts with the smallest use counts that are not predicted themselves.

    Args:
        predicted: int64 (tokens, k), the likeliest first.
        table: of the layer; updated except for the use counts.
        copy_list: filled.
    """
    experts, own = len(table.slot_of), len(table.expert_in)
    _ASSIGN_PREFETCH.launch(
        predicted.device,
        slot_macros(experts, own),
        (1,),
        _THREADS,
        predicted,
        predicted.numel(),
        table.first,
        table.slot_of,
        table.expert_in,
        table.use_counts,
        len(copy_list.copies),
        copy_list.copies,
        copy_list.number,
    )


def fetch_cuda(records: torch.Tensor, into: torch.Tensor, copy_list: CopyList, fetched: torch.Tensor) -> None:
    """Copy the listed records.

    Args:
        records: uint8 (experts, bytes) in pinned host memory.
        into: slots, uint8 (slots, bytes) on the device.
        copy_list: filled by an assignment.
        fetched: int64 (1,), to which the bytes are added.
    """
    _copy(_FETCH, _THREADS, _FETCH_CTAS, records, into, copy_list, fetched)


def prefetch_cuda(records: torch.Tensor, into: torch.Tensor, copy_list: CopyList, fetched: torch.Tensor) -> None:
    """Copy the listed records during other work; see `fetch_cuda`.

    This uses one warp per multiprocessor, which still keeps 270 KB under way on an H100. The CTAs of the product
    kernels take nearly all registers, and divide rows among as many CTAs as fit. A larger copy CTA would leave some of
    them for a second round.
    """
    _copy(_PREFETCH, _WARP, 1, records, into, copy_list, fetched)


def _copy(
    kernel: CudaKernel,
    threads: int,
    ctas: int,
    records: torch.Tensor,
    into: torch.Tensor,
    copy_list: CopyList,
    fetched: torch.Tensor,
) -> None:
    kernel.launch(
        into.device,
        slot_macros(1, 1, threads),
        (num_sms(into.device) * ctas,),
        threads,
        records,
        into,
        copy_list.copies,
        copy_list.number,
        records.shape[1] // 16,
        fetched,
    )


def slot_macros(experts: int, slots: int, threads: int = _THREADS) -> Macros:
    """Return the macros of offload/slots.cu."""
    return (("EXPERTS", experts), ("SLOTS", slots), ("THREADS", threads), ("SHIFT", SHIFT), ("UNIT", UNIT))
