"""Which experts lie in which slots: by the rules, and by the CUDA source, compiled for the CPU, as by the reference."""

from __future__ import annotations

import pytest
import torch

from hlwq_kernels.common import compile_kernel
from hlwq_kernels.offload.expert_layout import ALIGNMENT, RecordLayout, view
from hlwq_kernels.offload.slots import LayerTable, assign_slots_reference, slot_macros
from tests.kernels.offload.slot_rules import SlotRules
from tests.kernels.offload.slots_on_cpu import ASSIGN, ASSIGN_PREFETCH, FETCH, PREFETCH, SHARED
from tests.support.cuda_on_cpu import addresses, library

LAYER, LAYERS = 2, 4


def empty_table(experts: int, slots: int) -> LayerTable:
    none = [torch.full((n,), -1, dtype=torch.int32) for n in (experts, slots)]
    return LayerTable(*none, torch.zeros(experts, dtype=torch.int32), LAYER * slots, LAYERS * slots)


def counters() -> torch.Tensor:
    return torch.zeros(3, dtype=torch.int64)


def choices(steps: int, tokens: int, k: int, experts: int) -> torch.Tensor:
    """Some experts oftener than others; now and then a number that is no expert's."""
    torch.manual_seed(steps)
    likely = torch.rand(experts + 1) ** 3
    return torch.stack([torch.multinomial(likely.expand(tokens, -1), k) for _ in range(steps)])


@pytest.mark.parametrize(
    ("experts", "slots", "tokens", "k"), [(8, 1, 1, 2), (8, 3, 2, 2), (9, 9, 40, 2), (300, 37, 1, 8), (60, 20, 3, 8)]
)
def test_the_device_decides_as_the_host_does(experts: int, slots: int, tokens: int, k: int) -> None:
    kernel = library("offload/slots.cu", (*slot_macros(experts, slots), *SHARED), ASSIGN)
    expected, own = empty_table(experts, slots), empty_table(experts, slots)
    counted, counted_own = counters(), counters()
    places = torch.empty(tokens, k, dtype=torch.int64)
    copies, count = torch.empty(slots + k * tokens, 2, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    threads = dict(slot_macros(1, 1))["THREADS"]
    for topk_ids in choices(40, tokens, k, experts):
        planned = assign_slots_reference(topk_ids, expected, counted)
        arguments = [topk_ids, topk_ids.numel(), own.first, own.scratch, *own[:3], places, copies, count, counted_own]
        kernel.launch(1, threads, addresses(arguments))
        assert torch.equal(places, planned.slots)
        assert torch.equal(copies[: int(count)], planned.copies)
        for a, b in zip(own[:3], expected[:3], strict=True):
            assert torch.equal(a, b)
    assert torch.equal(counted_own, counted)
    assert counted[1] > 0


@pytest.mark.parametrize(("threads", "source"), [(256, FETCH), (32, PREFETCH)])
def test_records_arrive_whole_where_they_were_wanted(threads: int, source: str) -> None:
    words = 2 * 1024 + 100
    records = torch.randint(0, 256, (5, 16 * words), dtype=torch.uint8)
    into = torch.full((7, 16 * words), 9, dtype=torch.uint8)
    copies, count = torch.tensor([[4, 1], [0, 6], [2, 0], [1, 2]], dtype=torch.int32), torch.tensor([3]).int()
    counted = counters()
    kernel = library("offload/slots.cu", (*slot_macros(1, 1, threads), *SHARED), source)
    kernel.launch(3, threads, addresses([records, into, copies, count, words, counted]))
    for expert, slot in copies[:3].tolist():
        assert torch.equal(into[slot], records[expert])
    assert (into[[2, 3, 4, 5]] == 9).all()
    assert counted.tolist() == [3 * 16 * words, 0, 0]


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_both_kernels_compile(arch: str) -> None:
    for name in ("assign_slots", "assign_prefetch", "fetch", "fetch_ahead"):
        assert compile_kernel("offload/slots.cu", name, slot_macros(128, 36), arch).code


@pytest.mark.parametrize(("slots", "most"), [(1, 1), (2, 3), (7, 1), (7, 2), (20, 1)])
def test_guesses_get_slots_by_the_rule_and_none_that_a_guess_is_in(slots: int, most: int) -> None:
    """More guesses than slots, repeated ones and numbers that are no expert's included; then a step plans as ever."""
    ahead = library("offload/slots.cu", (*slot_macros(20, slots), *SHARED), ASSIGN_PREFETCH)
    table, rules = empty_table(20, slots), SlotRules(20, slots)
    copies, count = torch.empty(most, 2, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    brought = 0
    for guess, topk_ids in zip(choices(60, 1, 5, 20), choices(61, 1, 4, 20), strict=False):
        guess[0, 4] = guess[0, 1]
        arguments = [guess, 5, table.first, *table[:3], most, copies, count]
        use_counts = table.use_counts.clone()
        ahead.launch(1, int(dict(slot_macros(1, 1))["THREADS"]), addresses(arguments))
        expected = [[e, table.first + s] for e, s in rules.ahead(guess[0].tolist(), most)]
        assert copies[: int(count)].tolist() == expected
        assert torch.equal(table.use_counts, use_counts)
        assert table.expert_in.tolist() == rules.slots
        assert all(table.slot_of[e] == s for s, e in enumerate(rules.slots) if e >= 0)
        assert int((table.slot_of >= 0).sum()) == int((table.expert_in >= 0).sum())
        brought += len(expected)
        assign_slots_reference(topk_ids, table, counters())
        rules.step(set(topk_ids.flatten().tolist()) - {20})
        assert table.expert_in.tolist() == rules.slots
    assert brought


@pytest.mark.parametrize(("slots", "tokens", "k"), [(1, 1, 3), (5, 1, 3), (5, 2, 2), (16, 9, 2)])
def test_experts_make_room_by_the_rule(slots: int, tokens: int, k: int) -> None:
    table, counted, reference = empty_table(16, slots), counters(), SlotRules(16, slots)
    wanted = 0
    for topk_ids in choices(60, tokens, k, 16):
        planned = assign_slots_reference(topk_ids, table, counted)
        places = reference.step(set(topk_ids.flatten().tolist()) - {16})
        wanted += len(places)
        for expert, slot in zip(topk_ids.flatten().tolist(), planned.slots.flatten().tolist(), strict=True):
            place = places.get(expert)
            expected = -1 if place is None else table.first + place if place >= 0 else table.scratch - 1 - place
            assert slot == expected
    assert counted.tolist() == [wanted, reference.fetched, 0]


def test_a_record_holds_every_part_aligned_and_apart() -> None:
    gate_up = [((6, 40), torch.uint8), ((6, 2), torch.float16)]
    layout = RecordLayout.of(gate_up, [((4, 24), torch.uint8), ((4, 1), torch.uint8), ((4,), torch.bfloat16)])
    records = torch.zeros(3, layout.bytes, dtype=torch.uint8)
    parts = [view(records, part) for part in (*layout.gate_up, *layout.down)]
    assert [p.shape for p in parts] == [(3, 6, 40), (3, 6, 2), (3, 4, 24), (3, 4, 1), (3, 4)]
    assert all(p.data_ptr() % ALIGNMENT == records.data_ptr() % ALIGNMENT for p in parts)
    for i, part in enumerate(parts, 1):
        part.fill_(i)
    assert all((part == i).all() for i, part in enumerate(parts, 1))
    assert layout.bytes % ALIGNMENT == 0
