"""Slots on a device for records of experts that lie outside it: which expert is where, and who makes room for whom.

A layer owns some of the slots; scratch slots, which all layers share, take what finds no room in a step. An expert that
a step needs never makes room in that step. Who does is the one of the smallest score: a step takes 1 / 2^SHIFT of each
expert's score away, and adds UNIT to those it needs. That is a count of uses in which older ones weigh less.

All of it happens on the device where it can (slots.cu), so that no step waits for the host and a CUDA graph replays it.
The reference decides the same on the host, for the CPU and for records that only the host can read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..common.cuda_kernel import CudaKernel, Macros

SHIFT = 6
"""Of the shifts from 1 to 7, and LRU, and picky variants, best on recorded routings: scripts/studies/eviction.py."""
UNIT = 2**20
_THREADS = 256
_PLAN = CudaKernel("offload/slots.cu", name="plan")
_PLAN_AHEAD = CudaKernel("offload/slots.cu", name="plan_ahead")
_FETCH = CudaKernel("offload/slots.cu", name="fetch")
_FETCH_AHEAD = CudaKernel("offload/slots.cu", name="fetch_ahead")
_FETCHING_CTAS = 4
"""Blocks a multiprocessor that copy, to have many reads on their way to the host."""
_WARP = 32
AHEAD = 1
"""Experts of a layer that are fetched before its router has spoken: as many as other work hides the copy of. Two pay
less where that takes less than two copies, and wrong ones cost: scripts/studies/prefetch.py."""


class LayerTable(NamedTuple):
    """What is known of a layer's slots, and where they are among all: int32, on the device that plans.

    Attributes:
        slot_of: (experts,), the slot of each within the layer, or -1.
        expert_in: (slots,), or -1.
        scores: (experts,).
        first: the layer's first slot.
        scratch: the first scratch slot.
    """

    slot_of: torch.Tensor
    expert_in: torch.Tensor
    scores: torch.Tensor
    first: int
    scratch: int


class Planned(NamedTuple):
    """What a step needs.

    Attributes:
        slots: int64, in the shape of `chosen`: where each expert will lie, -1 for numbers that are no expert's.
        copies: int32 (experts missing, 2): an expert and its slot, experts ascending.
    """

    slots: torch.Tensor
    copies: torch.Tensor


def assign_slots_reference(chosen: torch.Tensor, table: LayerTable, counters: torch.Tensor) -> Planned:
    """Find places for the experts of a step and bring the table up to date; the reference of `assign_slots_cuda`.

    Args:
        chosen: int64 (tokens, k).
        table: of the layer, which is changed.
        counters: int64, experts wanted and experts missing at its begin, which are added to.
    """
    experts = len(table.slot_of)
    known = (chosen >= 0) & (chosen < experts)
    needed = torch.zeros(experts, dtype=torch.bool)
    needed[chosen[known]] = True
    scores = table.scores
    scores -= (scores + (2**SHIFT - 1)) >> SHIFT
    scores += needed * UNIT
    missing = (needed & (table.slot_of < 0)).nonzero()[:, 0]
    held = table.expert_in.long()
    idle = ((held < 0) | ~needed[held]).nonzero()[:, 0]
    order = torch.where(held < 0, -1, scores[held])[idle].argsort(stable=True)
    victims = idle[order][: len(missing)]
    cached = missing[: len(victims)]
    evicted = held[victims]
    table.slot_of[evicted[evicted >= 0]] = -1
    table.slot_of[cached] = victims.int()
    table.expert_in[victims] = cached.int()
    place = table.slot_of.long() + table.first
    place[missing[len(victims) :]] = table.scratch + torch.arange(len(missing) - len(victims))
    counters[0] += int(needed.sum())
    counters[1] += len(missing)
    slots = torch.where(known, place[torch.where(known, chosen, 0)], -1)
    return Planned(slots, torch.stack([missing, place[missing]], dim=1).int())


class Wanted(NamedTuple):
    """Where plans leave what `fetch_cuda` is to copy: int32 (experts, 2) and (1,), on the device."""

    copies: torch.Tensor
    number: torch.Tensor


def assign_slots_cuda(chosen: torch.Tensor, table: LayerTable, wanted: Wanted, counters: torch.Tensor) -> torch.Tensor:
    """`assign_slots_reference` on a CUDA device, without a word to the host; gives the slots."""
    slots = torch.empty_like(chosen)
    experts, own = len(table.slot_of), len(table.expert_in)
    _PLAN.launch(
        chosen.device,
        slot_macros(experts, own),
        (1,),
        _THREADS,
        chosen,
        chosen.numel(),
        table.first,
        table.scratch,
        table.slot_of,
        table.expert_in,
        table.scores,
        slots,
        wanted.copies,
        wanted.number,
        counters,
    )
    return slots


def assign_prefetch_cuda(chosen: torch.Tensor, table: LayerTable, wanted: Wanted) -> None:
    """Find places for some of the experts that a step may need soon, as many as `wanted` has room for.

    They are the layer's own slots, whose experts are not among those named and have the smallest scores.

    Args:
        chosen: int64 (tokens, k), the likeliest first.
        table: of the layer, which is changed, all but the scores.
        wanted: to be left there.
    """
    experts, own = len(table.slot_of), len(table.expert_in)
    _PLAN_AHEAD.launch(
        chosen.device,
        slot_macros(experts, own),
        (1,),
        _THREADS,
        chosen,
        chosen.numel(),
        table.first,
        table.slot_of,
        table.expert_in,
        table.scores,
        len(wanted.copies),
        wanted.copies,
        wanted.number,
    )


def fetch_cuda(records: torch.Tensor, into: torch.Tensor, wanted: Wanted, fetched: torch.Tensor) -> None:
    """Copy planned records.

    Args:
        records: uint8 (experts, bytes) in pinned host memory.
        into: slots, uint8 (slots, bytes) on the device.
        wanted: what a plan left.
        fetched: int64 (1,), to which the bytes are added.
    """
    _fetch(_FETCH, _THREADS, _FETCHING_CTAS, records, into, wanted, fetched)


def fetch_ahead_cuda(records: torch.Tensor, into: torch.Tensor, wanted: Wanted, fetched: torch.Tensor) -> None:
    """`fetch_cuda` beside other work: one warp a multiprocessor, which still have 270 KB on their way on an H100.

    The blocks of the product kernels take nearly all registers, and share rows among as many of them as fit: a larger
    one would leave some of them for a second round.
    """
    _fetch(_FETCH_AHEAD, _WARP, 1, records, into, wanted, fetched)


def _fetch(
    kernel: CudaKernel,
    threads: int,
    ctas: int,
    records: torch.Tensor,
    into: torch.Tensor,
    wanted: Wanted,
    fetched: torch.Tensor,
) -> None:
    kernel.launch(
        into.device,
        slot_macros(1, 1, threads),
        (_processors(into.device) * ctas,),
        threads,
        records,
        into,
        wanted.copies,
        wanted.number,
        records.shape[1] // 16,
        fetched,
    )


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def slot_macros(experts: int, slots: int, threads: int = _THREADS) -> Macros:
    """The macros of offload/slots.cu."""
    return (("EXPERTS", experts), ("SLOTS", slots), ("THREADS", threads), ("SHIFT", SHIFT), ("UNIT", UNIT))
