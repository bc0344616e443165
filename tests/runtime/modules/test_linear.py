"""Multiplying by codes is multiplying by the decoded weight."""

import pytest
import torch
from torch import nn

from hlwq_cli.codec import Coded, Scheme, decode, encode, lloyd_max
from hlwq_cli.runtime.modules import HLWQLinear, QuantFormat
from hlwq_kernels.linear import coded_linear

SCHEMES = [Scheme(b, 64, "log8", False) for b in range(2, 9)] + [Scheme.classic(5)]


def coded_weight(rows: int, columns: int, scheme: Scheme) -> tuple[Coded, torch.Tensor]:
    """A random weight's code, and what it decodes to."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns)) * 0.05
    coded = encode(weight, scheme)[0]
    return coded, decode(coded)


def multiply(x: torch.Tensor, coded: Coded, scheme: Scheme) -> torch.Tensor:
    centroids = torch.tensor(lloyd_max(scheme.bits), dtype=torch.float32)
    return coded_linear(x, coded.codes, coded.scales, coded.base, centroids, scheme.block_size)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_equals_float64_on_decoded_weights(scheme: Scheme) -> None:
    coded, weight = coded_weight(37, 192, scheme)
    x = torch.randn(5, 192)
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(multiply(x, coded, scheme).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [8, 63, 65, 100, 129, 320])
@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3), (0,)])
def test_any_width_and_any_leading_shape(columns: int, lead: tuple[int, ...]) -> None:
    scheme = Scheme(5, 64, "log8", False)
    coded, weight = coded_weight(7, columns, scheme)
    x = torch.randn(*lead, columns)
    found = multiply(x, coded, scheme)
    assert found.shape == (*lead, 7)
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-5)


def test_rows_beyond_a_tile_are_all_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hlwq_kernels.linear.linear._TILE_WEIGHTS", 64 * 4)
    scheme = Scheme(4, 64, "log8", False)
    coded, weight = coded_weight(11, 64, scheme)
    x = torch.randn(2, 64)
    torch.testing.assert_close(multiply(x, coded, scheme), x @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_stay_what_they_are_and_close(dtype: torch.dtype) -> None:
    scheme = Scheme(5, 64, "log8", False)
    coded, weight = coded_weight(16, 128, scheme)
    x = torch.randn(4, 128).to(dtype)
    found, expected = multiply(x, coded, scheme), x.double() @ weight.double().T
    assert found.dtype == dtype
    assert float((found.double() - expected).norm() / expected.norm()) < 1e-2


def test_the_gradient_to_the_activation_is_that_of_the_decoded_weight() -> None:
    scheme = Scheme(5, 64, "log8", False)
    coded, weight = coded_weight(12, 100, scheme)
    x = torch.randn(3, 100, requires_grad=True)
    up = torch.randn(3, 12)
    multiply(x, coded, scheme).backward(up)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, up @ weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("execution", ["coded", "dense"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_adds_its_bias_and_answers_weight(execution: str, bias: bool) -> None:
    scheme = Scheme(5, 64, "log8", False)
    like = nn.Linear(100, 9, bias=bias)
    quant_format = QuantFormat(64, "log8", {5: tuple(lloyd_max(5))}, execution)  # type: ignore[arg-type]
    coded, weight = coded_weight(9, 100, scheme)
    layer = HLWQLinear(like, 5, quant_format)
    layer.load_state_dict(
        {"codes": coded.codes, "scales": coded.scales.view_as(layer.scales), "base": coded.base}
        | ({"bias": like.bias} if bias else {})
    )
    layer.materialize()
    assert (layer.dense_weight is not None) == (execution == "dense")
    torch.testing.assert_close(layer.weight, weight, rtol=0, atol=0)
    x = torch.randn(2, 3, 100)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, like.bias), rtol=1e-5, atol=1e-5)
