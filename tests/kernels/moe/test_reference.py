"""The references of routing and of the weighted sum against their definitions written out."""

import torch

from hlwq_kernels.common import Scratch
from hlwq_kernels.moe import combine_expert_outputs, route_topk


def test_routing_takes_the_most_probable_experts_with_scaled_probabilities() -> None:
    torch.manual_seed(0)
    x, weight, scale = torch.randn(5, 12), torch.randn(7, 12), torch.rand(7)
    topk_ids, topk_weights = route_topk(x, weight, scale, 3, Scratch())
    for token in range(5):
        probs = (weight.double() @ x[token].double()).softmax(0)
        ids = probs.argsort(descending=True)[:3]
        assert topk_ids[token].tolist() == ids.tolist()
        expected = probs[ids] / probs[ids].sum() * scale[ids]
        torch.testing.assert_close(topk_weights[token].double(), expected, atol=1e-6, rtol=1e-5)


def test_a_negative_row_adds_nothing_to_the_weighted_sum() -> None:
    torch.manual_seed(0)
    rows, row_index, topk_weights = torch.randn(6, 10), torch.tensor([[5, 0], [-1, 2], [-1, -1]]), torch.rand(3, 2)
    found = combine_expert_outputs(rows, row_index, topk_weights)
    expected = torch.zeros(3, 10)
    expected[0] = topk_weights[0, 0] * rows[5] + topk_weights[0, 1] * rows[0]
    expected[1] = topk_weights[1, 1] * rows[2]
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[2], torch.zeros(10))
