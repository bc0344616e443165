"""Offloaded experts on a CUDA device: the results of resident ones, to the bit; fetched by the rules; in a graph."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from hlwq_cli.runtime.decode import Generation
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.offload import ExpertBudget, expert_cache_of, placement
from hlwq_cli.runtime.offload.expert_files import HostRecords
from hlwq_kernels.codes import QuantizedWeight
from hlwq_kernels.common import reads_pinned_memory
from hlwq_kernels.moe import MAX_FUSED_PAIRS, coded_experts
from hlwq_kernels.offload import MAX_PREFETCHED_EXPERTS, ExpertSlots, OffloadedLayer, RecordLayout, SlotCounts, view
from tests.gpu.device import CUDA, needs_cuda
from tests.gpu.test_linear import activations
from tests.gpu.test_moe import gate, stacked
from tests.kernels.offload.slot_rules import SlotRules
from tests.runtime.loads import logits, tokens

pytestmark = needs_cuda
EXPERTS, INNER, HIDDEN = 20, 96, 320


@pytest.fixture(scope="module")
def resident() -> tuple[QuantizedWeight, QuantizedWeight]:
    return stacked(5, EXPERTS, 2 * INNER, HIDDEN), stacked(5, EXPERTS, HIDDEN, INNER)


def outside(resident: tuple[QuantizedWeight, QuantizedWeight]) -> HostRecords:
    parts = [[(t.shape[1:], t.dtype) for t in weight[:3] if t is not None] for weight in resident]
    layout = RecordLayout.of(*parts)
    records = HostRecords(EXPERTS, layout, pin=True)
    for described, weight in zip((layout.gate_up, layout.down), resident, strict=True):
        for part, tensor in zip(described, (t for t in weight[:3] if t is not None), strict=True):
            view(records.records, part).copy_(tensor)
    return records


def layers(
    resident: tuple[QuantizedWeight, QuantizedWeight], slots: int, scratch: int, itself: bool = True
) -> list[Any]:
    records = outside(resident)
    assert records.pinned is not None
    assert reads_pinned_memory(CUDA)
    parts = [[(t.shape[1:], t.dtype) for t in weight[:3] if t is not None] for weight in resident]
    shared = ExpertSlots(SlotCounts(2, EXPERTS, slots, scratch), RecordLayout.of(*parts), CUDA, itself)
    tables = resident[0].centroids, resident[1].centroids
    return [OffloadedLayer(shared, number, records, tables, 64) for number in range(2)]


def choice(count: int, k: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.stack([torch.randperm(EXPERTS + 1)[:k] for _ in range(count)]).to(CUDA)


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("slots", [1, 3, 11, EXPERTS])
@pytest.mark.parametrize(("count", "k"), [(1, 4), (3, 4), (40, 4), (MAX_FUSED_PAIRS // 4, 4), (MAX_FUSED_PAIRS, 4)])
def test_a_layer_gives_what_a_resident_one_gives(
    resident: tuple[QuantizedWeight, QuantizedWeight], slots: int, count: int, k: int, itself: bool
) -> None:
    x = activations(count, HIDDEN, torch.bfloat16) / 100
    both = layers(resident, slots, k, itself)
    for seed in range(3):
        topk_weights, topk_ids = torch.rand(count, k, device=CUDA), choice(count, k, seed)
        for name in (None, "gelu_pytorch_tanh"):
            expected = coded_experts(x, topk_ids, topk_weights, *resident, gate, name)
            for layer in both:
                assert torch.equal(layer.run(x, topk_ids, topk_weights, gate, name), expected)


def test_the_device_fetches_by_the_rules(resident: tuple[QuantizedWeight, QuantizedWeight]) -> None:
    first, second = layers(resident, 5, 4)
    rules = SlotRules(EXPERTS, 5), SlotRules(EXPERTS, 5)
    wanted = 0
    for seed in range(50):
        for layer, rule in ((first, rules[0]), (second, rules[1])):
            topk_ids = choice(2, 4, seed)
            layer.run(activations(2, HIDDEN, torch.bfloat16), topk_ids, torch.rand(2, 4, device=CUDA), gate, None)
            experts = set(topk_ids.flatten().tolist()) - {EXPERTS}
            wanted += len(experts)
            rule.step(experts)
    fetched = rules[0].fetched + rules[1].fetched
    assert first.slots.counters.tolist() == [wanted, fetched, fetched * first.slots.layout.bytes, 0]


@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("captured", [False, True])
def test_prefetches_follow_the_rules_and_change_no_sum(
    resident: tuple[QuantizedWeight, QuantizedWeight], slots: int, captured: bool
) -> None:
    """Ten tokens through two layers at once, so that a copy that came too early or late would meet a reader."""
    first, second = layers(resident, slots, 4)
    rules, tokens_at_once = (SlotRules(EXPERTS, slots), SlotRules(EXPERTS, slots)), 10
    x, topk_weights = activations(1, HIDDEN, torch.bfloat16), torch.rand(1, 4, device=CUDA)
    topk_ids = torch.zeros(tokens_at_once, 3, 1, 4, dtype=torch.int64, device=CUDA)

    def step() -> torch.Tensor:
        sums = []
        for of_first, guess, of_second in topk_ids:
            sums.append(first.run(x, of_first, topk_weights, gate, "gelu_pytorch_tanh"))
            second.prefetch(lambda given, guess=guess: guess, x, first)
            sums.append(second.run(x, of_second, topk_weights, gate, "gelu_pytorch_tanh"))
        return torch.cat(sums)

    def follow() -> tuple[int, int]:
        """Experts that were missing, and those fetched ahead."""
        before, ahead = rules[0].fetched + rules[1].fetched, 0
        for of_first, guess, of_second in topk_ids.tolist():
            rules[0].step(set(of_first[0]) - {EXPERTS})
            ahead += len(rules[1].ahead(guess[0], MAX_PREFETCHED_EXPERTS))
            rules[1].step(set(of_second[0]) - {EXPERTS})
        return rules[0].fetched + rules[1].fetched - before, ahead

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = step()
    torch.cuda.current_stream().wait_stream(stream)
    follow()
    if captured:
        with torch.cuda.graph(graph, stream=stream):
            found = step()
    record = first.slots.layout.bytes
    for seed in range(10):
        topk_ids.copy_(choice(tokens_at_once * 3, 4, seed).view_as(topk_ids))
        before = first.slots.counters.clone()
        if captured:
            graph.replay()
        else:
            found = step()
        sums = (
            coded_experts(x, c, topk_weights, *resident, gate, "gelu_pytorch_tanh")
            for c in topk_ids[:, ::2].flatten(0, 1)
        )
        assert torch.equal(found, torch.cat(list(sums)))
        missing, ahead = follow()
        fetched = (first.slots.counters - before).tolist()
        assert fetched[1:] == [missing, missing * record, ahead * record]


def test_a_graph_fetches_the_experts_of_any_routing(resident: tuple[QuantizedWeight, QuantizedWeight]) -> None:
    layer, _ = layers(resident, 3, 4)
    x, topk_weights = activations(1, HIDDEN, torch.bfloat16), torch.rand(1, 4, device=CUDA)
    topk_ids = torch.tensor([[0, 1, 2, 3]], device=CUDA)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        layer.run(x, topk_ids, topk_weights, gate, "gelu_pytorch_tanh")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        y = layer.run(x, topk_ids, topk_weights, gate, "gelu_pytorch_tanh")
    for seed in range(20):
        topk_ids.copy_(choice(1, 4, seed))
        graph.replay()
        assert torch.equal(y, coded_experts(x, topk_ids, topk_weights, *resident, gate, "gelu_pytorch_tanh"))


def test_threads_with_streams_of_their_own_get_their_own_answers(
    resident: tuple[QuantizedWeight, QuantizedWeight],
) -> None:
    layer, _ = layers(resident, 2, 4)
    x, topk_weights = activations(1, HIDDEN, torch.bfloat16), torch.rand(1, 4, device=CUDA)
    choices = [choice(1, 4, seed) for seed in range(40)]
    expected = [coded_experts(x, topk_ids, topk_weights, *resident, gate, None) for topk_ids in choices]
    wrong: list[int] = []

    def ask(seeds: range) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for seed in seeds:
                if not torch.equal(layer.run(x, choices[seed], topk_weights, gate, None), expected[seed]):
                    wrong.append(seed)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=ask, args=(range(start, 40, 2),)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("tier", ["host", "files"])
def test_a_model_answers_as_a_resident_one(
    coded_sample: str, slots: int, dtype: str, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(coded_sample, device="cuda:0", dtype=dtype)
    if tier == "files":
        monkeypatch.setattr(placement, "host_memory_free", lambda: 0)
    ours = load_model(coded_sample, device="cuda:0", dtype=dtype, expert_budget=ExpertBudget(slots))
    for ids in (tokens(1, 1), tokens(2, 9), tokens(1, 300), tokens(1, 1)):
        assert torch.equal(logits(ours, input_ids=ids.to(CUDA)), logits(model, input_ids=ids.to(CUDA)))
    ids = tokens(2, 30).to(CUDA)
    options: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 40}
    options |= {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    generation = Generation(ours)
    for _ in range(2):
        assert torch.equal(generation.generate(**options), Generation(model).generate(**options))
    if tier == "host" and dtype == "bfloat16":
        assert generation.decoding == "graph", generation.decoder and generation.decoder.graph_error


@pytest.mark.parametrize("slots", [1, 3])
def test_a_model_fetches_ahead_and_answers_as_a_resident_one(coded_sample: str, slots: int) -> None:
    model = load_model(coded_sample, device="cuda:0", dtype="bfloat16")
    ours = load_model(coded_sample, device="cuda:0", dtype="bfloat16", expert_budget=ExpertBudget(slots))
    ids = tokens(1, 30).to(CUDA)
    options: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 200}
    options |= {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(Generation(ours).generate(**options), Generation(model).generate(**options))
    cache = expert_cache_of(ours)
    assert cache is not None
    traffic = cache.traffic()
    assert traffic.fetched == traffic.missing * cache.record_bytes
    assert traffic.ahead % cache.record_bytes == 0
    assert 0 < traffic.ahead <= 4 * 220 * cache.record_bytes


def test_a_size_is_kept_and_experts_are_never_on_the_device_whole(coded_sample: str) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(CUDA)
    before = torch.cuda.memory_allocated(CUDA)
    model = load_model(coded_sample, device="cuda:0", expert_budget=ExpertBudget(gpu_memory=2 * 10**9))
    cache = expert_cache_of(model)
    assert cache is not None
    assert cache.slots == 8
    assert cache.estimate is not None
    held = cache.estimate.weights + cache.estimate.scratch + 8 * cache.estimate.slot
    assert torch.cuda.max_memory_allocated(CUDA) - before < 1.1 * held + 2**20
