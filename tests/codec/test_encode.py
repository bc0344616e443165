"""Weights of any leading dimensions to codes and back, and weights that cannot be coded."""

import math

import pytest
import torch

from hlwq_cli.codec import Coded, Scheme, SquaredError, decode, encode, lloyd_max
from hlwq_cli.errors import HlwqError, NonFiniteError, UnsupportedError

SCHEMES = [Scheme(5), Scheme(3, 32, search=False), Scheme.classic(4), Scheme(8, 256, "fp16")]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same_bytes(a: Coded, b: Coded) -> bool:
    if (a.base is None) != (b.base is None):
        return False
    parts = [(a.codes, b.codes), (a.scales, b.scales)]
    if a.base is not None and b.base is not None:
        parts.append((a.base, b.base))
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in parts)


def expert(coded: Coded, *index: int) -> Coded:
    base = None if coded.base is None else coded.base[index]
    return Coded(coded.codes[index], coded.scales[index], base, coded.shape[len(index) :], coded.scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_stacked_experts_are_coded_as_each_alone(scheme: Scheme) -> None:
    weight = normal(3, 6, 130)
    stacked, total = encode(weight, scheme)
    assert stacked.shape == (3, 6, 130)
    assert stacked.codes.shape == (3, 6, scheme.padded(130) * scheme.bits // 8)
    assert stacked.scales.shape == (3, 6, scheme.padded(130) // scheme.block_size)
    costs = SquaredError()
    for e in range(3):
        alone, cost = encode(weight[e], scheme)
        assert same_bytes(expert(stacked, e), alone)
        assert torch.equal(decode(stacked)[e], decode(alone))
        costs += cost
    assert (total.error, total.energy) == pytest.approx((costs.error, costs.energy), rel=1e-12)


@pytest.mark.parametrize("lead", [(), (1,), (2, 1, 2)])
def test_any_leading_dimensions_have_one_code_path(lead: tuple[int, ...]) -> None:
    coded, _ = encode(normal(*lead, 128), Scheme(5))
    assert coded.codes.shape == (*lead, 80)
    assert coded.scales.shape == (*lead, 2)
    assert coded.base is not None
    assert coded.base.shape == lead
    assert decode(coded).shape == (*lead, 128)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", [(1, 64), (3, 1), (1, 1), (4, 65), (2, 31), (2, 257)])
def test_odd_shapes_decode_near_the_original(shape: tuple[int, int], scheme: Scheme) -> None:
    weight = normal(*shape)
    coded, cost = encode(weight, scheme)
    back = decode(coded)
    assert back.shape == shape
    assert back.dtype == torch.float32
    error = (back - weight).double().square().sum().item()
    assert error <= cost.error * (1 + 1e-3), "the cost told includes the padded tail"
    assert error < 0.07 * cost.energy
    assert cost.energy == pytest.approx(weight.double().square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("scheme", [Scheme(5), Scheme.classic(4)], ids=str)
@pytest.mark.parametrize("shape", [(0, 64), (0, 3, 65), (2, 0, 64)])
def test_a_weight_without_rows_has_codes_without_rows(shape: tuple[int, ...], scheme: Scheme) -> None:
    coded, cost = encode(torch.zeros(shape), scheme)
    assert coded.codes.shape[:-1] == coded.scales.shape[:-1] == shape[:-1]
    assert coded.nbytes == 0
    assert cost == SquaredError(0.0, 0.0)
    assert decode(coded).shape == shape


def test_a_parameter_is_coded_as_the_tensor_it_holds() -> None:
    weight = normal(4, 64)
    assert same_bytes(encode(torch.nn.Parameter(weight), Scheme(5))[0], encode(weight, Scheme(5))[0])


def test_encoding_does_not_change_the_weight() -> None:
    weight = normal(4, 100)
    before = weight.clone()
    encode(weight, Scheme(5))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_are_coded_as_their_values(dtype: torch.dtype) -> None:
    weight = normal(2, 3, 130).to(dtype)
    (narrow, narrow_cost), (wide, wide_cost) = encode(weight, Scheme(5)), encode(weight.float(), Scheme(5))
    assert same_bytes(narrow, wide)
    assert narrow_cost == wide_cost


def test_decoding_takes_the_centroids_of_the_checkpoint_if_given() -> None:
    coded, _ = encode(normal(2, 128), Scheme(4))
    own = torch.tensor(lloyd_max(4), dtype=torch.float32)
    assert torch.equal(decode(coded, own), decode(coded))
    assert torch.equal(decode(coded, 2 * own), 2 * decode(coded))


def test_coding_decoded_zeros_costs_nothing() -> None:
    coded, cost = encode(torch.zeros(3, 100), Scheme(5))
    assert not decode(coded).any()
    assert cost == SquaredError(0.0, 0.0)
    assert cost.relative == 0.0


def test_squared_errors_of_several_weights_add() -> None:
    total = SquaredError(1.0, 8.0) + SquaredError(3.0, 8.0)
    assert total == SquaredError(4.0, 16.0)
    assert total.relative == 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bad", "said"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_weight_that_is_not_finite_is_named(bad: float, said: str, dtype: torch.dtype) -> None:
    weight = normal(3, 4, 70).to(dtype)
    weight[1, 2, 69] = bad
    with pytest.raises(NonFiniteError) as raised:
        encode(weight, Scheme(5), name="model.layers.3.mlp.down_proj.weight")
    assert raised.value.what.startswith(f"model.layers.3.mlp.down_proj.weight[1, 2, 69] is {said},")
    assert "--exclude" in raised.value.hint


@pytest.mark.parametrize("bad", [2.0**120, -(2.0**120), 3e38])
@pytest.mark.parametrize("scheme", [Scheme(5), Scheme.classic(5)], ids=str)
def test_a_weight_of_2_to_the_120_is_named_and_one_just_below_is_coded(bad: float, scheme: Scheme) -> None:
    weight = torch.zeros(4, 70)
    weight[2, 5] = bad
    with pytest.raises(NonFiniteError, match=r"^L\[2, 5\] is "):
        encode(weight, scheme, name="L")


def test_the_largest_weights_allowed_decode_to_finite_values() -> None:
    below = math.nextafter(2.0**120, 0) - 2.0**96
    for weight in (torch.full((2, 256), below), normal(2, 256).sign() * below):
        back = decode(encode(weight, Scheme(2, 256))[0])
        assert back.isfinite().all()


def test_an_index_in_a_slice_is_that_in_the_whole_tensor() -> None:
    rows = normal(15, 70)
    rows[12, 7] = math.inf
    with pytest.raises(NonFiniteError, match=r"^experts\[2, 2, 7\] is inf"):
        encode(rows[10:], Scheme(5), name="experts", first_row=10, lead=(3, 5))
    with pytest.raises(NonFiniteError, match=r"^L\[12, 7\] is inf"):
        encode(rows[10:], Scheme(5), name="L", first_row=10, lead=(15,))


def test_the_first_row_of_a_slice_counts_without_leading_dimensions() -> None:
    rows = normal(15, 70)
    rows[12, 7] = math.inf
    with pytest.raises(NonFiniteError, match=r"^L\[12, 7\] is inf"):
        encode(rows[10:], Scheme(5), name="L", first_row=10)


def with_norm(norm: float) -> torch.Tensor:
    """Rows of one block of 64, the second of that norm."""
    weight = normal(3, 64)
    weight[1] *= norm / weight[1].norm()
    return weight


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("norm", [1e5, 1e10, 1e30])
def test_a_norm_too_large_for_fp16_is_refused_with_what_to_do(norm: float, search: bool) -> None:
    with pytest.raises(UnsupportedError, match=r"block of L has a norm above 65504.*log8") as raised:
        encode(with_norm(norm), Scheme(5, 64, "fp16", search), name="L")
    assert isinstance(raised.value, HlwqError)
    assert encode(with_norm(norm), Scheme(5, 64, "log8", search))[1].relative < 0.01


@pytest.mark.parametrize("norm", [66e3, 90e3])
def test_a_searched_norm_just_too_large_for_fp16_is_refused_too(norm: float) -> None:
    with pytest.raises(UnsupportedError, match="norm above 65504"):
        encode(with_norm(norm), Scheme(5, 64, "fp16"))


@pytest.mark.parametrize("search", [True, False])
def test_the_largest_norm_of_fp16_is_coded(search: bool) -> None:
    weight = with_norm(65e3)
    coded, cost = encode(weight, Scheme(5, 64, "fp16", search))
    assert coded.scales.isfinite().all()
    assert cost.relative < 0.003
