"""Linear layers from codes on every rank: what all ranks compute together is what one computes."""

from itertools import product

import pytest
import torch

from hlwq_cli.errors import UnsupportedError
from hlwq_cli.vllm.config import Options
from hlwq_cli.vllm.linear import HLWQLinearMethod

from .layers import coded, heads_linear, linear, parts_of, stored

X = torch.randn(3, 2112, generator=torch.Generator().manual_seed(1))


def loaded(layer, matrices, codes, like, sizes, inputs, execution="coded"):
    """The method of a layer, with its codes loaded. `inputs`: of this rank, and of all."""
    method = HLWQLinearMethod(like, matrices, Options(execution), "layer")
    with torch.random.fork_rng():
        method.create_weights(layer, inputs[0], sizes, inputs[1], sum(sizes), torch.float32)
    for matrix, found in zip(matrices, codes, strict=True):
        for part, tensor in parts_of(found).items():
            method.load(layer, matrix, part, tensor)
    assert method.missing() == []
    method.process_weights_after_loading(layer)
    return method


@pytest.mark.parametrize(("each", "ranks"), [*product([8, 88, 104, 264], range(1, 9)), (352, 2), (1056, 2)])
@pytest.mark.parametrize("execution", ["coded", "dense"])
def test_products_of_ranks_add_up_where_columns_are_divided(each, ranks, execution):
    like, columns = stored(), each * ranks
    matrix, codes, weight = coded("o_proj", (24, columns), 5, like)
    x, y = X[:, :columns], 0
    for rank in range(ranks):
        layer = linear(rank)
        method = loaded(layer, [matrix], [codes], like, [24], (each, columns), execution)
        y = y + method.apply(layer, x[:, rank * each : (rank + 1) * each])
    torch.testing.assert_close(y, x @ weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("bits", [(5, 5), (5, 3), (4, 8)])
@pytest.mark.parametrize("scale", ["log8", "fp16"])
def test_merged_layers_give_each_rank_its_rows(ranks, bits, scale):
    like = stored(scale, 128 if scale == "fp16" else 64)
    made = [coded(name, (48, 200), b, like) for name, b in zip(("gate_proj", "up_proj"), bits, strict=True)]
    matrices, codes, weights = zip(*made, strict=True)
    share, x = 48 // ranks, X[:, :200]
    for rank in range(ranks):
        layer = linear(rank, (48, 48))
        method = loaded(layer, matrices, codes, like, [share, share], (200, 200))
        assert len(method.groups) == (1 if bits[0] == bits[1] else 2)
        rows = slice(rank * share, (rank + 1) * share)
        expected = torch.cat([x @ w[rows].T for w in weights], dim=1)
        bias = torch.arange(2.0 * share)
        torch.testing.assert_close(method.apply(layer, x, bias), expected + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("is_one_tensor", [False, True])
def test_ranks_share_key_heads_where_there_are_fewer(ranks, is_one_tensor):
    like, size, heads, key_heads = stored(), 16, 8, 2
    rows = [heads * size, key_heads * size, key_heads * size]
    if is_one_tensor:
        made = [coded("qkv_proj", (sum(rows), 72), 5, like)]
    else:
        made = [coded(n, (r, 72), b, like) for n, r, b in zip(("q", "k", "v"), rows, (5, 5, 6), strict=True)]
    matrices, codes, weights = zip(*made, strict=True)
    q, k, v = torch.cat(weights).split(rows)
    own, own_keys, x = heads // ranks * size, max(1, key_heads // ranks) * size, X[:, :72]
    for rank in range(ranks):
        layer = heads_linear(rank, ranks, heads, key_heads, size)
        method = loaded(layer, matrices, codes, like, [own, own_keys, own_keys], (72, 72))
        at, shared = rank * own, rank // max(1, ranks // key_heads) * own_keys
        held = torch.cat([q[at : at + own], k[shared : shared + own_keys], v[shared : shared + own_keys]])
        torch.testing.assert_close(method.apply(layer, x), x @ held.T, rtol=1e-4, atol=1e-4)


def test_stored_rows_that_are_not_those_of_the_layer_are_refused():
    like = stored()
    matrix, _, _ = coded("gate_proj", (48, 64), 5, like)
    method = HLWQLinearMethod(like, [matrix], Options("coded"), "mlp.gate_proj")
    with pytest.raises(UnsupportedError, match=r"mlp\.gate_proj has parts of \[40\] rows .* \[48\]"):
        method.create_weights(linear(), 64, [40], 64, 40, torch.float32)
    with pytest.raises(UnsupportedError, match="72 inputs in vLLM"):
        method.create_weights(linear(), 72, [48], 72, 48, torch.float32)


def test_what_was_not_loaded_is_named():
    like = stored()
    matrix, codes, _ = coded("gate_proj", (48, 64), 5, like)
    method, layer = HLWQLinearMethod(like, [matrix], Options("coded"), "gate_proj"), linear()
    method.create_weights(layer, 64, [48], 64, 48, torch.float32)
    method.load(layer, matrix, "codes", codes.codes)
    assert method.missing() == ["gate_proj.base", "gate_proj.scales"]
