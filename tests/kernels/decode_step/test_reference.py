"""The references of a decode step against float64 arithmetic written out."""

import pytest
import torch

from hlwq_kernels.common import Scratch
from hlwq_kernels.decode_step import (
    DecodeCache,
    Norm,
    decode_attention,
    fused_add_rmsnorm_post_ffn,
    fused_add_rmsnorm_pre_ffn,
    qk_norm_rope_append,
)


def made(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def normed(x: torch.Tensor, weight: torch.Tensor | float, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_norms_before_the_feed_forward_are_those_of_their_definition() -> None:
    x, residual, scale = made(3, 10), made(3, 10), made(10)
    w = [made(10) for _ in range(3)]
    norm, dense, experts = (Norm(weight, 1e-3) for weight in w)
    total = residual + normed(x, w[0], 1e-3)
    expected = (
        total,
        normed(total, w[1], 1e-3),
        normed(total, w[2], 1e-3),
        normed(total, 1.0, 1e-3) * scale * 0.25,
    )
    found = fused_add_rmsnorm_pre_ffn(x, residual, norm, dense, experts, scale, 0.25)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    without = fused_add_rmsnorm_pre_ffn(x, residual, norm, dense, None, None, 0.25)
    assert torch.equal(without[0], found[0])
    assert torch.equal(without[1], found[1])
    assert without[2:] == (None, None)


def test_norms_after_the_feed_forward_are_those_of_their_definition() -> None:
    dense, experts, residual, scalar = made(3, 10), made(3, 10), made(3, 10), made(1)
    w = [made(10) for _ in range(4)]
    of_dense, of_experts, norm, following = (Norm(weight, 1e-3) for weight in w)
    both = normed(dense, w[0], 1e-3) + normed(experts, w[1], 1e-3)
    for y, arguments in (
        (both, (dense, experts, residual, of_dense, of_experts)),
        (dense, (dense, None, residual, None, None)),
    ):
        expected = (residual + normed(y, w[2], 1e-3)) * scalar
        out, follows = fused_add_rmsnorm_post_ffn(*arguments, norm, scalar, following)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(follows, normed(expected, w[3], 1e-3))
        assert fused_add_rmsnorm_post_ffn(*arguments, norm, scalar, None)[1] is None


def test_heads_are_normed_rotated_by_angle_and_appended_at_the_slot() -> None:
    rows, heads, key_heads, size = 2, 6, 3, 8
    q, k, v = made(rows, heads * size), made(rows, key_heads * size), made(rows, key_heads * size)
    weights, angles = (made(size), made(size)), made(rows, size // 2)
    cache = DecodeCache(made(rows, key_heads, 5, size), made(rows, key_heads, 5, size), torch.tensor([3]))
    before = cache.keys.clone(), cache.values.clone()
    cosines, sines = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    query = qk_norm_rope_append(q, k, v, Norm(weights[0], 1e-3), Norm(weights[1], 1e-3), cosines, sines, cache)

    def rotated(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = normed(x.view(rows, -1, size), weight, 1e-3)
        turned = torch.complex(y[..., : size // 2], y[..., size // 2 :]) * torch.exp(1j * angles)[:, None]
        return torch.cat([turned.real, turned.imag], dim=-1)

    torch.testing.assert_close(query, rotated(q, weights[0]))
    torch.testing.assert_close(cache.keys[:, :, 3], rotated(k, weights[1]))
    torch.testing.assert_close(cache.values[:, :, 3], normed(v.view(rows, -1, size), 1.0, 1e-3))
    others = [0, 1, 2, 4]
    assert torch.equal(cache.keys[:, :, others], before[0][:, :, others])
    assert torch.equal(cache.values[:, :, others], before[1][:, :, others])


def test_attention_is_that_of_each_head_with_its_key_head() -> None:
    rows, heads, key_heads, size, length = 2, 6, 3, 8, 7
    query, mask = made(rows, heads, size), made(rows, length)
    keys, values = made(rows, key_heads, length + 2, size), made(rows, key_heads, length + 2, size)
    keys[:, :, length:], values[:, :, length:] = torch.nan, torch.nan
    found = decode_attention(query, DecodeCache(keys, values, torch.tensor([0])), mask, 0.3, Scratch())
    for row in range(rows):
        for head in range(heads):
            k, v = keys[row, head // 2, :length], values[row, head // 2, :length]
            expected = (k @ query[row, head] * 0.3 + mask[row]).softmax(0) @ v
            torch.testing.assert_close(found[row, head * size : (head + 1) * size], expected)
