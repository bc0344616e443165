"""Codes of cached tokens: their error, their bytes, and what is no number."""

import pytest
import torch

from hlwq_kernels.attention import decode_kv, encode_kv, padded_dim
from hlwq_kernels.attention.kv_states import rotate_heads
from hlwq_kernels.attention.kv_tables import KV_SCALES, rotation_block
from tests.kernels.attention.kv_cases import tables
from tests.kernels.weights import BITS

WORST = {2: 0.118, 3: 0.0342, 4: 0.0091, 5: 0.00232, 6: 5.9e-4, 7: 1.5e-4, 8: 3.9e-5}
"""Relative squared errors of normal values, largest for the widest heads."""


def error(x: torch.Tensor, bits: int) -> float:
    """The mean of the heads' relative squared errors."""
    codes, scales = encode_kv(x, tables(bits))
    decoded = decode_kv(codes, scales, tables(bits), x.shape[-1])
    return float(((decoded - x).square().sum(-1) / x.square().sum(-1)).mean())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [64, 128, 256, 512])
def test_normal_heads_err_as_their_width_allows(bits: int, dim: int) -> None:
    x = torch.randn(2, 3, 2**13 // dim, dim, generator=torch.Generator().manual_seed(dim))
    assert error(x * torch.logspace(-3, 3, x.shape[2])[:, None], bits) < WORST[bits] * 1.04
    assert error(x, bits) > WORST[bits] * 0.7


@pytest.mark.parametrize("dim", [64, 80, 96, 192, 512])
def test_one_loud_value_is_spread_by_the_rotation(dim: int) -> None:
    x = torch.randn(64, dim, generator=torch.Generator().manual_seed(0)) * 0.01
    x[:, 3] += 5.0
    assert error(x, 4) < 0.02


def test_heads_are_rotated_whole_or_in_the_largest_blocks_that_fit() -> None:
    assert [(padded_dim(d), rotation_block(d)) for d in (64, 512, 80, 96, 192, 576)] == [
        (64, 64),
        (512, 512),
        (96, 32),
        (96, 32),
        (192, 64),
        (576, 64),
    ]


@pytest.mark.parametrize("dim", [64, 80, 512])
def test_the_rotation_is_its_own_inverse_and_keeps_products(dim: int) -> None:
    q, k = torch.randn(2, 9, dim, dtype=torch.float32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotate_heads(rotate_heads(q, dim), dim)[:, :dim], q)
    products = (rotate_heads(q, dim) * rotate_heads(k, dim)).sum(-1)
    torch.testing.assert_close(products, (q * k).sum(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [64, 80])
def test_a_head_takes_its_codes_and_one_byte(bits: int, dim: int) -> None:
    codes, scales = encode_kv(torch.randn(2, 3, 5, dim), tables(bits))
    assert (codes.shape, codes.dtype) == ((2, 3, 5, padded_dim(dim) * bits // 8), torch.uint8)
    assert (scales.shape, scales.dtype) == ((2, 3, 5), torch.uint8)


def test_zeros_come_back_as_zeros() -> None:
    codes, scales = encode_kv(torch.zeros(3, 64), tables(4))
    assert not scales.any()
    assert torch.equal(decode_kv(codes, scales, tables(4), 64), torch.zeros(3, 64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_no_scale_can_hold_decodes_to_no_number(value: float) -> None:
    x = torch.randn(3, 64)
    x[1, 5] = value
    codes, scales = encode_kv(x, tables(4))
    found = decode_kv(codes, scales, tables(4), 64)
    assert scales[1] == 255
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


def test_scales_are_eighths_of_an_octave() -> None:
    assert KV_SCALES[0] == 0
    assert KV_SCALES[128] == 1
    assert KV_SCALES[136] == 2
    assert KV_SCALES[255].isnan()


def test_a_token_is_coded_alike_alone_and_among_others() -> None:
    x = torch.randn(2, 3, 40, 96, generator=torch.Generator().manual_seed(2))
    codes, scales = encode_kv(x, tables(3))
    for t in (0, 7, 39):
        alone = encode_kv(x[:, :, t : t + 1], tables(3))
        assert torch.equal(alone[0], codes[:, :, t : t + 1])
        assert torch.equal(alone[1], scales[:, :, t : t + 1])
