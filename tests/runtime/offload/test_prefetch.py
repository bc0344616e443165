"""Experts fetched before their router has spoken: a GPU's way through a whole model, followed on the CPU.

The kernels that plan and fetch are its own, compiled by g++; products are torch's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hlwq_cli.runtime.decode import Decoder
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.modules import HLWQExperts
from hlwq_cli.runtime.offload import ExpertBudget, Traffic, expert_cache_of, placement
from hlwq_cli.runtime.offload.expert_files import HostRecords
from hlwq_kernels.offload import MAX_PREFETCHED_EXPERTS, OffloadedLayer
from tests.kernels.offload.slot_rules import SlotRules
from tests.kernels.offload.slots_on_cpu import run_slot_kernels_on_cpu

STEPS = 6


class ReadByTheDevice(HostRecords):
    """As where memory is pinned."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pinned = self.records


def opened(folder: str, budget: ExpertBudget | None) -> Any:
    return load_model(folder, device="cpu", dtype="float32", execution="coded", expert_budget=budget)


def answered(model: Any) -> torch.Tensor:
    """Logits (STEPS + 1, vocabulary) of a short answer, by our own steps."""
    decoder, ids = Decoder(model), torch.randint(10, 4000, (1, 9), generator=torch.Generator().manual_seed(1))
    found = [decoder.prefill({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, STEPS + 1).clone()]
    for _ in range(STEPS):
        found.append(decoder.decode_step(found[-1].argmax(-1)).clone())
    assert decoder.runner.layers
    return torch.cat(found)


@pytest.fixture(scope="module")
def expected(coded_sample: str) -> torch.Tensor:
    return answered(opened(coded_sample, None))


@pytest.mark.parametrize("own", [1, 3])
def test_answers_are_the_same_to_the_bit_and_bytes_are_those_of_routers_guesses_and_rules(
    coded_sample: str, expected: torch.Tensor, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_slot_kernels_on_cpu(monkeypatch)
    monkeypatch.setattr(placement, "reads_pinned_memory", lambda device: True)
    monkeypatch.setattr(placement, "HostRecords", ReadByTheDevice)
    model = opened(coded_sample, ExpertBudget(own))
    layers = [m.offloaded for m in model.modules() if isinstance(m, HLWQExperts)]
    rules, counted = [SlotRules(8, own) for _ in layers], {"ahead": 0, "streamed": 0, "wanted": 0, "right": 0}
    guessed: dict[int, list[int]] = {}
    ensure_resident, prefetch = OffloadedLayer.ensure_resident, OffloadedLayer.prefetch
    expert_batches = OffloadedLayer._expert_batches

    def bringing(self: OffloadedLayer, topk_ids: torch.Tensor) -> torch.Tensor:
        number, needed = layers.index(self), set(topk_ids.flatten().tolist())
        counted["wanted"] += len(needed)
        counted["right"] += len(needed.intersection(guessed.pop(number, [])))
        rules[number].step(needed)
        return ensure_resident(self, topk_ids)

    def foreseeing(self: OffloadedLayer, guess: Any, x: torch.Tensor, before: OffloadedLayer) -> None:
        number, found = layers.index(self), guess(x)
        assert before is layers[number - 1]
        assert found.shape == (1, 2)
        guessed[number] = found[0].tolist()
        counted["ahead"] += len(rules[number].ahead(guessed[number], MAX_PREFETCHED_EXPERTS))
        prefetch(self, guess, x, before)

    def passing(self: OffloadedLayer, present: list[int]) -> Any:
        counted["streamed"] += len(present)
        return expert_batches(self, present)

    monkeypatch.setattr(OffloadedLayer, "ensure_resident", bringing)
    monkeypatch.setattr(OffloadedLayer, "prefetch", foreseeing)
    monkeypatch.setattr(OffloadedLayer, "_expert_batches", passing)
    assert torch.equal(answered(model), expected)
    cache = expert_cache_of(model)
    assert cache is not None
    assert cache.groups[0].device_assigns
    record, missing = cache.record_bytes, sum(rule.fetched for rule in rules)
    assert cache.traffic() == Traffic(
        counted["wanted"], missing, missing * record, counted["streamed"] * record, counted["ahead"] * record
    )
    assert counted["ahead"] > STEPS
    assert counted["right"] > STEPS * 4 * 2 * 0.6, "the next router is asked, of the sum that it is near to"
