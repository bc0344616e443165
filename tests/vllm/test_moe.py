"""Experts from codes on every rank: the parts of all ranks add up to what one computes."""

import pytest
import torch

from hlwq_cli.errors import UnsupportedError
from hlwq_cli.vllm.moe import HLWQMoEMethod
from hlwq_kernels.moe import coded_experts_reference

from .layers import coded, experts, parts_of, stored

EXPERTS, TOP_K, HIDDEN = 8, 2, 72


def stacks(inner, like, bits=(5, 5)):
    first = coded("experts.gate_up_proj", (EXPERTS, 2 * inner, HIDDEN), bits[0], like)
    second = coded("experts.down_proj", (EXPERTS, HIDDEN, inner), bits[1], like)
    return first, second


def part(rank, ranks, parallel, inner, like, made, slots=None):
    """The method and the layer of a rank, with its codes loaded."""
    layer, config = experts(rank, ranks, EXPERTS, TOP_K, parallel, slots)
    matrices = (made[0][0], made[1][0])
    method = HLWQMoEMethod(layer.moe_config, like, matrices, config, "experts")
    tp = layer.moe_config.moe_parallel_config.tp_size
    method.create_weights(layer, layer.num_local, HIDDEN, inner // tp, torch.float32)
    for matrix, codes, _ in made:
        for name, tensor in parts_of(codes).items():
            method.load(layer, matrix, name, tensor)
    assert method.missing() == []
    method.process_weights_after_loading(layer)
    return method, layer


def expected(x, ids, weights, made):
    y = torch.zeros_like(x)
    for token, chosen in enumerate(ids.tolist()):
        for j, expert in enumerate(chosen):
            gate, up = (made[0][2][expert] @ x[token]).chunk(2)
            y[token] += weights[token, j] * (made[1][2][expert] @ (torch.nn.functional.silu(gate) * up))
    return y


def routed():
    generator = torch.Generator().manual_seed(2)
    x, weights = torch.randn(5, HIDDEN, generator=generator), torch.rand(5, TOP_K, generator=generator)
    return x, torch.rand(5, EXPERTS, generator=generator).topk(TOP_K).indices, weights


@pytest.mark.parametrize("parallel", ["tp", "ep"])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("inner", [96, 704])
@pytest.mark.parametrize("scale", ["log8", "fp16"])
def test_parts_of_ranks_add_up(parallel, ranks, inner, scale):
    like = stored(scale)
    made, (x, ids, weights) = stacks(inner, like, (5, 4)), routed()
    y = 0
    for rank in range(ranks):
        method, layer = part(rank, ranks, parallel, inner, like, made)
        y = y + method.apply(layer, x, weights, ids, None, None)
    torch.testing.assert_close(y, expected(x, ids, weights, made), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ranks", [3, 5, 6, 7])
def test_any_number_of_ranks_that_divides_the_columns_will_do(ranks):
    like, inner = stored(), 24 * ranks
    made, (x, ids, weights) = stacks(inner, like), routed()
    y = 0
    for rank in range(ranks):
        method, layer = part(rank, ranks, "tp", inner, like, made)
        y = y + method.apply(layer, x, weights, ids, None, None)
    torch.testing.assert_close(y, expected(x, ids, weights, made), rtol=1e-4, atol=1e-4)


def test_all_experts_on_one_rank_give_the_bits_of_the_reference():
    like = stored()
    made, (x, ids, weights) = stacks(96, like), routed()
    method, layer = part(0, 1, "tp", 96, like, made)
    gate_up, down = method.weights(layer)
    reference = coded_experts_reference(x, ids, weights, gate_up, down, method.gate)
    assert torch.equal(method.apply(layer, x, weights, ids, None, None), reference)


@pytest.mark.parametrize(("parallel", "ranks"), [("tp", 1), ("tp", 2), ("ep", 2)])
def test_slots_change_nothing(parallel, ranks):
    like = stored()
    made, (x, ids, weights) = stacks(96, like), routed()
    for rank in range(ranks):
        usual, layer = part(rank, ranks, parallel, 96, like, made)
        offloaded, other = part(rank, ranks, parallel, 96, like, made, slots=2)
        for _ in range(2):
            y = offloaded.apply(other, x, weights, ids, None, None)
            assert torch.equal(y, usual.apply(layer, x, weights, ids, None, None))


def test_a_size_that_vllm_sees_in_another_way_is_refused():
    like = stored()
    made = stacks(96, like)
    layer, config = experts(0, 2, EXPERTS, TOP_K, "tp")
    method = HLWQMoEMethod(layer.moe_config, like, (made[0][0], made[1][0]), config, "layers.0.experts")
    with pytest.raises(UnsupportedError, match=r"layers\.0\.experts has experts of 80 x 72"):
        method.create_weights(layer, EXPERTS, HIDDEN, 40, torch.float32)
    with pytest.raises(UnsupportedError, match="adapters"):
        method.select_gemm_impl(None, layer)
