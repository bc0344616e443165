"""How a layer of experts runs through slots on a GPU, followed on the CPU: its own kernels plan and fetch, by g++."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hlwq_kernels import encode_rows
from hlwq_kernels.codes import QuantizedWeight
from hlwq_kernels.moe import MAX_FUSED_PAIRS, coded_experts_reference
from hlwq_kernels.offload import layer as offloaded
from hlwq_kernels.offload.expert_layout import RecordLayout, view
from hlwq_kernels.offload.layer import OffloadedLayer
from hlwq_kernels.offload.memory import ExpertSlots, SlotCounts
from hlwq_kernels.offload.slots import MAX_PREFETCHED_EXPERTS
from tests.kernels.offload.slot_rules import SlotRules
from tests.kernels.offload.slots_on_cpu import run_slot_kernels_on_cpu
from tests.kernels.weights import tables

EXPERTS, INNER, HIDDEN, K = 12, 32, 64, 3
STEPS = 10


def stacked(rows: int, columns: int) -> QuantizedWeight:
    weight = torch.randn(EXPERTS * rows, columns, generator=torch.Generator().manual_seed(rows))
    coded = encode_rows(weight, tables(5), 64, "log8", False)
    codes, scales, base = (None if t is None else t.unflatten(0, (EXPERTS, rows)) for t in coded[:3])
    assert codes is not None
    assert scales is not None
    return QuantizedWeight(codes, scales, base, torch.from_numpy(tables(5).centroids), 64)


class HeldRecords:
    def __init__(self, layout: RecordLayout, weights: tuple[QuantizedWeight, QuantizedWeight]) -> None:
        self.pinned = torch.zeros(EXPERTS, layout.bytes, dtype=torch.uint8)
        for described, weight in zip((layout.gate_up, layout.down), weights, strict=True):
            for part, tensor in zip(described, (t for t in weight[:3] if t is not None), strict=True):
                view(self.pinned, part).copy_(tensor)

    def read(self, expert: int) -> torch.Tensor:
        return self.pinned[expert]


def gate(rows: torch.Tensor) -> torch.Tensor:
    a, b = rows.chunk(2, dim=-1)
    return torch.nn.functional.silu(a) * b


def of_few(
    x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, gate_up: Any, down: Any, *gates: Any
) -> Any:
    """What the product kernels give: each token for itself."""
    rows = (t.split(1) for t in (x, topk_ids, topk_weights))
    return torch.cat([coded_experts_reference(*row, gate_up, down, gates[0]) for row in zip(*rows, strict=True)])


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    run_slot_kernels_on_cpu(monkeypatch)
    monkeypatch.setattr(offloaded, "supports_gemm_small_m", lambda x: True)
    monkeypatch.setattr(offloaded, "fused_experts", of_few)


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Products of torch may round otherwise where a weight is aligned otherwise; a wrong expert is far away."""
    return bool((found - expected).abs().max() <= 1e-6 * expected.abs().max())


@pytest.fixture(scope="module")
def weights() -> tuple[QuantizedWeight, QuantizedWeight]:
    return stacked(2 * INNER, HIDDEN), stacked(HIDDEN, INNER)


def two_layers(weights: tuple[QuantizedWeight, QuantizedWeight], own: int) -> tuple[OffloadedLayer, OffloadedLayer]:
    parts = [[(t.shape[1:], t.dtype) for t in weight[:3] if t is not None] for weight in weights]
    layout = RecordLayout.of(*parts)
    shared = ExpertSlots(SlotCounts(2, EXPERTS, own, K), layout, torch.device("cpu"), device_assigns=True)
    tables = weights[0].centroids, weights[1].centroids
    first, second = (OffloadedLayer(shared, number, HeldRecords(layout, weights), tables, 64) for number in range(2))
    return first, second


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("own", [1, 7, 11, EXPERTS])
def test_layers_share_slots_scratch_and_counters_and_give_the_resident_sums(
    weights: tuple[QuantizedWeight, QuantizedWeight], own: int
) -> None:
    layers = two_layers(weights, own)
    shared = layers[0].slots
    torch.manual_seed(0)
    for tokens in (1, 2, 1, 5, 1, 15, 1, MAX_FUSED_PAIRS // K + 1):
        for layer in layers:
            x = torch.randn(tokens, HIDDEN, dtype=torch.float64)
            topk_ids = torch.stack([torch.randperm(EXPERTS + 1)[:K] for _ in range(tokens)])
            topk_weights = torch.rand(tokens, K, dtype=torch.float64)
            expected = coded_experts_reference(x, topk_ids, topk_weights, *weights, gate)
            assert near(layer.run(x, topk_ids, topk_weights, gate, None), expected)
    wanted, missing, fetched, ahead = shared.counters.tolist()
    assert fetched == missing * shared.layout.bytes
    assert 0 < missing <= wanted
    assert (missing == 2 * EXPERTS) == (own == EXPERTS)
    assert shared.buffers.bytes_streamed == 2 * EXPERTS * shared.layout.bytes
    assert ahead == 0


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize(("own", "right"), [(1, 0), (1, 1), (1, K), (7, 0), (7, 1), (7, K), (EXPERTS, K)])
def test_what_is_fetched_ahead_changes_no_sum_and_is_counted_apart(
    weights: tuple[QuantizedWeight, QuantizedWeight], own: int, right: int
) -> None:
    """Guesses of which none, one or all are right, once each of the first layer has fetched its own."""
    first, second = two_layers(weights, own)
    rules = SlotRules(EXPERTS, own), SlotRules(EXPERTS, own)
    record, ahead = first.slots.layout.bytes, 0
    torch.manual_seed(right)
    for _ in range(STEPS):
        x, topk_weights = torch.randn(1, HIDDEN, dtype=torch.float64), torch.rand(1, K, dtype=torch.float64)
        for layer, rule in zip((first, second), rules, strict=True):
            order = torch.randperm(EXPERTS)[None]
            topk_ids, guess = order[:, :K], order[:, K - right : 2 * K - right]
            if layer is second:
                layer.prefetch(lambda given, guess=guess: guess, x, first)
                ahead += 0 if own == EXPERTS else len(rule.ahead(guess[0].tolist(), MAX_PREFETCHED_EXPERTS))
            rule.step(set(topk_ids[0].tolist()))
            expected = coded_experts_reference(x, topk_ids, topk_weights, *weights, gate)
            assert near(layer.run(x, topk_ids, topk_weights, gate, None), expected)
    missing = rules[0].fetched + rules[1].fetched
    assert first.slots.counters.tolist() == [2 * STEPS * K, missing, missing * record, ahead * record]
    assert (ahead > 0) == (own < EXPERTS)
