"""A layer of experts from codes: against float64 on the decoded experts, for any routing."""

import pytest
import torch

from hlwq_kernels.codes import QuantizedWeight
from hlwq_kernels.linear import supports_moe_gemv_down
from hlwq_kernels.moe import MAX_FUSED_PAIRS, coded_experts
from tests.gpu.device import CUDA, needs_cuda
from tests.gpu.test_linear import activations, decoded, error, random_weight

pytestmark = needs_cuda


def stacked(bits: int, experts: int, rows: int, columns: int, scale: str = "log8") -> QuantizedWeight:
    parts = [random_weight(bits, 64, scale, rows, columns, seed) for seed in range(experts)]
    codes, scales, base = (
        None if part[0] is None else torch.stack(part)  # type: ignore[arg-type]
        for part in zip(*(p[:3] for p in parts), strict=True)
    )
    assert codes is not None
    assert scales is not None
    return QuantizedWeight(codes, scales, base, parts[0].centroids, 64)


def one(weight: QuantizedWeight, expert: int) -> QuantizedWeight:
    base = None if weight.base is None else weight.base[expert]
    return weight._replace(codes=weight.codes[expert], scales=weight.scales[expert], base=base)


def expected(
    x: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    gate_up: QuantizedWeight,
    down: QuantizedWeight,
    inner: int,
) -> torch.Tensor:
    out = torch.zeros(*x.shape, dtype=torch.float64, device=CUDA)
    for t in range(len(x)):
        for e, weight in zip(topk_ids[t].tolist(), topk_weights[t].double(), strict=True):
            if 0 <= e < len(gate_up.codes):
                hidden = decoded(one(gate_up, e), x.shape[1]) @ x[t].double()
                out[t] += weight * (decoded(one(down, e), inner) @ gate(hidden))
    return out


def gate(rows: torch.Tensor) -> torch.Tensor:
    a, b = rows.chunk(2, dim=-1)
    return torch.nn.functional.gelu(a, approximate="tanh") * b


CHOICES = {
    "spread": lambda t, k, e: torch.stack([torch.randperm(e)[:k] for _ in range(t)]),
    "all to one": lambda t, k, e: torch.full((t, k), 3),
    "some to none": lambda t, k, e: torch.arange(t * k).view(t, k) % (e + 1),
    "all to none": lambda t, k, e: torch.full((t, k), e),
}


@pytest.mark.parametrize("choice", list(CHOICES))
@pytest.mark.parametrize(("tokens", "k"), [(1, 8), (3, 8), (2, 2), (4, 3), (MAX_FUSED_PAIRS // 8 + 3, 8)])
def test_layer_is_that_of_the_decoded_experts(tokens: int, k: int, choice: str) -> None:
    gate_up, down = stacked(5, 9, 2 * 96, 320), stacked(5, 9, 320, 96)
    torch.manual_seed(tokens)
    topk_ids = CHOICES[choice](tokens, k, 9).to(CUDA)
    topk_weights = torch.rand(tokens, k, device=CUDA)
    x = activations(tokens, 320, torch.bfloat16) / 100
    true = expected(x, topk_ids, topk_weights, gate_up, down, 96)
    for name in (None, "gelu_pytorch_tanh"):
        y = coded_experts(x, topk_ids, topk_weights, gate_up, down, gate, name)
        if choice == "all to none":
            assert not y.any()
        else:
            assert error(y, true) < 8e-3


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_layer_of_gemma4_26b_in_other_widths(bits: int) -> None:
    gate_up, down = stacked(bits, 10, 2 * 704, 2816), stacked(bits, 10, 2816, 704)
    x, topk_ids = activations(2, 2816, torch.float16) / 1000, torch.tensor([[0, 9, 3, 4], [9, 8, 2, 1]], device=CUDA)
    topk_weights = torch.rand(2, 4, device=CUDA, dtype=torch.float16)
    y = coded_experts(x, topk_ids, topk_weights, gate_up, down, gate, "gelu_pytorch_tanh")
    assert error(y, expected(x, topk_ids, topk_weights, gate_up, down, 704)) < 2e-3


@pytest.mark.parametrize(("k", "in_one"), [(1, True), (2, False)])
def test_wide_experts_are_summed_by_one_kernel_while_a_row_of_each_fits_a_cta(k: int, in_one: bool) -> None:
    gate_up, down = stacked(5, 4, 2 * 14336, 128), stacked(5, 4, 128, 14336)
    assert supports_moe_gemv_down(down, k) == in_one
    x, topk_ids = activations(2, 128, torch.bfloat16) / 100, torch.tensor([[3, 0, 4], [1, 2, 3]], device=CUDA)[:, :k]
    topk_weights = torch.rand(2, k, device=CUDA)
    true = expected(x, topk_ids, topk_weights, gate_up, down, 14336)
    for name in (None, "gelu_pytorch_tanh"):
        assert error(coded_experts(x, topk_ids, topk_weights, gate_up, down, gate, name), true) < 8e-3


def test_a_cuda_graph_replays_another_routing() -> None:
    gate_up, down = stacked(5, 9, 2 * 96, 320), stacked(5, 9, 320, 96)
    x, topk_weights = activations(1, 320, torch.bfloat16), torch.rand(1, 4, device=CUDA)
    topk_ids = torch.tensor([[0, 1, 2, 3]], device=CUDA)
    coded_experts(x, topk_ids, topk_weights, gate_up, down, gate, "gelu_pytorch_tanh")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = coded_experts(x, topk_ids, topk_weights, gate_up, down, gate, "gelu_pytorch_tanh")
    topk_ids.copy_(torch.tensor([[8, 7, 6, 5]], device=CUDA))
    graph.replay()
    assert torch.equal(y, coded_experts(x, topk_ids, topk_weights, gate_up, down, gate, "gelu_pytorch_tanh"))
