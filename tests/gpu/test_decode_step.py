"""What a decode step does between products: kernels against their references, a layer against that of transformers."""

import pytest
import torch

from hlwq_cli.runtime.decode import Decoder, runner
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.samples import resolve_model
from hlwq_kernels.common import Scratch
from hlwq_kernels.decode_step import (
    DecodeCache,
    Norm,
    decode_attention,
    decode_attention_reference,
    fused_add_rmsnorm_post_ffn,
    fused_add_rmsnorm_post_ffn_reference,
    fused_add_rmsnorm_pre_ffn,
    fused_add_rmsnorm_pre_ffn_reference,
    qk_norm_rope,
    qk_norm_rope_append,
    qk_norm_rope_append_reference,
    qk_norm_rope_reference,
)
from hlwq_kernels.moe import combine_expert_outputs, combine_expert_outputs_reference, route_topk
from tests.gpu.device import CUDA, needs_cuda

pytestmark = needs_cuda
HEADS = [(16, 8, 256), (16, 2, 512), (32, 8, 128), (3, 1, 64), (14, 2, 64)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def made(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(CUDA).manual_seed(seed + sum(shape))
    return torch.randn(shape, device=CUDA, generator=generator).to(dtype)


def close(found: torch.Tensor, expected: torch.Tensor, roundings: int = 2) -> None:
    """Assert equality up to a number of roundings of each value, and of the largest value for sums that cancel."""
    assert found.dtype == expected.dtype
    eps = torch.finfo(expected.dtype).eps
    roundings *= 8 if expected.dtype == torch.float32 else 1  # sums have another order
    limit = roundings * eps * (expected.double().abs() + expected.double().abs().max() / 8)
    off = (found.double() - expected.double()).abs()
    assert bool((off <= limit + 1e-6).all()), float((off - limit).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 2816), (3, 192), (2, 8192), (16, 1000)])
@pytest.mark.parametrize("routes", [True, False])
def test_norms_before_and_after_the_feed_forward_are_those_of_the_reference(
    dtype: torch.dtype, rows: int, columns: int, routes: bool
) -> None:
    x, residual, other = (made(rows, columns, dtype=dtype, seed=s) * 3 for s in (1, 2, 3))
    w = [Norm(made(columns, dtype=dtype, seed=s) + 1, 1e-6) for s in (4, 5, 6)]
    scale = made(columns, dtype=dtype, seed=7)
    between = (x, residual, w[0], w[1], w[2] if routes else None, scale if routes else None, columns**-0.5)
    for a, b in zip(fused_add_rmsnorm_pre_ffn(*between), fused_add_rmsnorm_pre_ffn_reference(*between), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)
    scalar = torch.tensor([0.7], device=CUDA, dtype=dtype)
    for following in (w[1], None):
        after = (
            x,
            other if routes else None,
            residual,
            w[0] if routes else None,
            w[1] if routes else None,
            w[2],
            scalar,
        )
        found, expected = (
            fused_add_rmsnorm_post_ffn(*after, following),
            fused_add_rmsnorm_post_ffn_reference(*after, following),
        )
        close(found[0], expected[0], 3)
        assert (found[1] is None) == (following is None)
        if following is not None:
            close(found[1], expected[1], 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(16, 8, 256), (16, 2, 512), (3, 1, 64), (4, 4, 128)])
def test_heads_are_normed_rotated_and_appended_to_the_cache(
    dtype: torch.dtype, heads: int, key_heads: int, size: int
) -> None:
    rows, slots = 2, 70
    together = made(rows, (heads + 2 * key_heads) * size, dtype=dtype)
    q, k, v = together.split([heads * size, key_heads * size, key_heads * size], dim=-1)
    norms = Norm(made(size, dtype=dtype, seed=1), 1e-6), Norm(made(size, dtype=dtype, seed=2), 1e-6)
    angles = made(rows, size // 2, dtype=torch.float32).repeat(1, 2)
    found = []
    for run in (qk_norm_rope_append, qk_norm_rope_append_reference):
        cache = DecodeCache(
            *(torch.ones(rows, key_heads, slots, size, dtype=dtype, device=CUDA) for _ in range(2)),
            torch.tensor([41], device=CUDA),
        )
        for values in (v, k):
            query = run(q, k, values, *norms, angles.cos().to(dtype), angles.sin().to(dtype), cache)
            found.append((query, cache.keys.clone(), cache.values.clone()))
    for a, b in zip(found[:2], found[2:], strict=True):
        for x, y in zip(a, b, strict=True):
            close(x, y, 3)
    assert bool((found[0][1][:, :, [40, 42]] == 1).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "key_heads", "size"), HEADS)
def test_heads_rotated_by_a_table_are_those_of_the_reference(
    dtype: torch.dtype, heads: int, key_heads: int, size: int
) -> None:
    q, k, v = made(3, (heads + 2 * key_heads) * size, dtype=dtype).split(
        [heads * size, key_heads * size, key_heads * size], dim=1
    )
    norms = Norm(made(size, dtype=dtype, seed=1), 1e-6), Norm(made(size, dtype=dtype, seed=2), 1e-6)
    table, positions = made(100, size, dtype=dtype, seed=3), torch.tensor([99, 0, 41], device=CUDA)
    found = qk_norm_rope(q, k, v, *norms, table, positions)
    for a, b in zip(found, qk_norm_rope_reference(q, k, v, *norms, table, positions), strict=True):
        close(a, b, 3)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(
    ("heads", "key_heads", "size"), [(16, 8, 256), (16, 2, 512), (32, 8, 128), (3, 1, 64), (14, 2, 64)]
)
@pytest.mark.parametrize("length", [1, 31, 256, 1000, 9000])
def test_attention_over_a_dense_cache_is_that_of_the_reference(
    dtype: torch.dtype, heads: int, key_heads: int, size: int, length: int
) -> None:
    rows, scratch = 2, Scratch()
    query = made(rows, heads, size, dtype=dtype)
    keys, values = (made(rows, key_heads, length + 5, size, dtype=dtype, seed=s) for s in (1, 2))
    mask = torch.zeros(rows, length, dtype=dtype, device=CUDA)
    mask[0, : length // 3] = torch.finfo(dtype).min
    mask[1, length // 2 + 1 :] = torch.finfo(dtype).min
    cache = DecodeCache(keys, values, torch.tensor([0], device=CUDA))
    exact_cache = DecodeCache(keys.double(), values.double(), cache.slot)
    exact = decode_attention_reference(query.double(), exact_cache, mask.double(), size**-0.5)
    for _ in range(2):
        found = decode_attention(query, cache, mask, size**-0.5, scratch)
        error = (found.double() - exact).norm() / exact.norm()
        assert error < 4 * torch.finfo(dtype).eps
    assert not scratch.counts(1, CUDA).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("experts", "k", "columns"), [(128, 8, 2816), (8, 2, 192), (60, 4, 2048), (1024, 32, 512)])
def test_routing_takes_the_experts_of_the_largest_probabilities(
    dtype: torch.dtype, experts: int, k: int, columns: int
) -> None:
    scratch = Scratch()
    x, weight = made(5, columns, dtype=dtype) * columns**-0.5, made(experts, columns, dtype=dtype)
    scale = made(experts, dtype=dtype, seed=3)
    probs = torch.nn.functional.linear(x.double(), weight.double()).softmax(-1)
    for _ in range(2):
        topk_ids, topk_weights = route_topk(x, weight, scale, k, scratch)
        assert all(len(set(row)) == k for row in topk_ids.tolist())
        topk_probs = probs.gather(1, topk_ids)
        largest = probs.topk(k).values
        assert bool(((topk_probs - largest).abs() <= 4 * torch.finfo(dtype).eps * largest).all())
        expected = topk_probs / topk_probs.sum(-1, keepdim=True) * scale.double()[topk_ids]
        assert bool(((topk_weights - expected).abs() <= 8 * torch.finfo(dtype).eps * expected.abs()).all())


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_weighted_sums_of_rows_are_those_of_the_reference(dtype: torch.dtype) -> None:
    rows = made(999, 2816, dtype=dtype)
    row_index = torch.randperm(1000, device=CUDA).view(125, 8) - 1
    topk_weights = torch.rand(125, 8, device=CUDA)
    expected = combine_expert_outputs_reference(rows, row_index, topk_weights)
    close(combine_expert_outputs(rows, row_index, topk_weights), expected, 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_layers_of_the_sample_are_those_of_transformers(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def alike(differences: list[torch.Tensor]) -> bool:
        seen.extend(float(d) for d in differences)
        return True

    monkeypatch.setattr(runner, "are_alike", alike)
    model = load_model(resolve_model("sample"), device="cuda:0", dtype=dtype)
    ids = torch.randint(10, 4000, (2, 40), device=CUDA)
    Decoder(model).prefill({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 8)
    assert len(seen) == 5
    assert max(seen) < (2e-2 if dtype == "bfloat16" else 1e-5)
