"""Slots on a device for records of experts that lie outside it: which expert is where, and who makes room for whom.

A layer owns some of the slots; scratch slots, which all layers share, take what finds no room in a step. An expert that
a step needs never makes room in that step. Who does is the one of the smallest score: a step takes 1 / 2^SHIFT of each
expert's score away, and adds UNIT to those it needs. That is a count of uses in which older ones weigh less.

All of it happens on the device where it can (slots.cu), so that no step waits for the host and a CUDA graph replays it.
The torch twin decides the same on the host, for the CPU and for records that only the host can read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .nvrtc import CudaKernel, Macros

SHIFT = 6
"""Of the shifts from 1 to 7, and LRU, and picky variants, the best on recorded routings: scripts/bench_eviction.py."""
UNIT = 2**20
_THREADS = 256
_PLAN = CudaKernel("slots.cu", name="plan")
_FETCH = CudaKernel("slots.cu", name="fetch")
_FETCHING_CTAS = 4
"""Blocks a multiprocessor that copy, to have many reads on their way to the host."""


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


def plan_torch(chosen: torch.Tensor, table: LayerTable, counters: torch.Tensor) -> Planned:
    """Find places for the experts of a step and bring the table up to date; the torch twin of `plan_cuda`.

    Args:
        chosen: int64 (tokens, k).
        table: of the layer, which is changed.
        counters: int64 (3,): experts wanted, experts missing, bytes fetched; the first two are added to.
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
    """Where `plan_cuda` leaves what `fetch_cuda` is to copy: int32 (experts, 2) and (1,), on the device."""

    copies: torch.Tensor
    number: torch.Tensor


def plan_cuda(chosen: torch.Tensor, table: LayerTable, wanted: Wanted, counters: torch.Tensor) -> torch.Tensor:
    """`plan_torch` on a CUDA device, without a word to the host; gives the slots."""
    slots = torch.empty_like(chosen)
    experts, own = len(table.slot_of), len(table.expert_in)
    _PLAN.launch(
        chosen.device, plan_macros(experts, own), (1,), _THREADS, chosen, chosen.numel(), table.first, table.scratch,
        table.slot_of, table.expert_in, table.scores, slots, wanted.copies, wanted.number, counters,
    )  # fmt: skip
    return slots


def fetch_cuda(records: torch.Tensor, into: torch.Tensor, wanted: Wanted, counters: torch.Tensor) -> None:
    """Copy planned records, uint8 (experts, bytes) in pinned host memory, into slots, (slots, bytes) on the device."""
    ctas = _processors(into.device) * _FETCHING_CTAS
    _FETCH.launch(
        into.device, plan_macros(1, 1), (ctas,), _THREADS, records, into, wanted.copies,
        wanted.number, records.shape[1] // 16, counters,
    )  # fmt: skip


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def plan_macros(experts: int, slots: int) -> Macros:
    """The macros of slots.cu."""
    return (("EXPERTS", experts), ("SLOTS", slots), ("THREADS", _THREADS), ("SHIFT", SHIFT), ("UNIT", UNIT))
