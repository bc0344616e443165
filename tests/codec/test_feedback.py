"""Error feedback: the loss it reports is that of the outputs, and it is less than that of plain coding."""

import pytest
import torch

from hlwq_cli.codec import (
    Coded,
    FeedbackRows,
    Moments,
    Scheme,
    decode,
    encode_feedback,
    encode_rows,
    feedback_factor,
    shrink,
)
from hlwq_cli.errors import NonFiniteError, UnsupportedError, UsageError


def inputs(tokens: int, d: int, seed: int = 0) -> torch.Tensor:
    """Correlated inputs with channels of very different size, float64 (tokens, d)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    sizes = torch.exp(torch.randn(d, generator=generator, dtype=torch.float64))
    common = torch.randn(tokens, d // 8, generator=generator, dtype=torch.float64) @ mixing[: d // 8]
    own = torch.randn(tokens, d, generator=generator, dtype=torch.float64)
    return (common / (d / 8) ** 0.5 + 0.5 * own) * sizes


def moments(tokens: int = 2000, d: int = 160, seed: int = 0) -> Moments:
    x = inputs(tokens, d, seed)
    return Moments(x.T @ x, tokens)


def weights(rows: int, d: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed)) * 0.03


def decoded(coded: FeedbackRows, scheme: Scheme, shape: torch.Size) -> torch.Tensor:
    return decode(Coded(coded.codes, coded.scales, coded.base, tuple(shape), scheme)).double()


def quadratic(d: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return torch.einsum("...ri,...ij,...rj->...r", d, h, d)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("columns", [128, 192])
def test_the_loss_is_that_of_the_decoded_weight(bits: int, columns: int) -> None:
    scheme, shrunk = Scheme(bits), shrink(moments(d=columns))
    h, weight = shrunk.h.clone(), weights(24, columns)
    coded = encode_feedback(weight, feedback_factor(shrunk, 64), scheme)
    difference = weight.double() - decoded(coded, scheme, weight.shape)
    torch.testing.assert_close(coded.loss.sum(), quadratic(difference, h).sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(coded.loss_energy, quadratic(weight.double(), h), rtol=1e-6, atol=0)
    torch.testing.assert_close(coded.error, difference.square().sum(dim=1), rtol=1e-5, atol=0)
    torch.testing.assert_close(coded.energy, weight.double().square().sum(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_feedback_takes_away_nine_tenths_of_the_loss_of_plain_coding(bits: int) -> None:
    scheme, shrunk = Scheme(bits), shrink(moments())
    h, weight = shrunk.h.clone(), weights(32, 160)
    coded = encode_feedback(weight, feedback_factor(shrunk, 64), scheme)
    plain = encode_rows(weight, scheme)
    difference = weight.double() - decode(Coded(plain.codes, plain.scales, plain.base, tuple(weight.shape), scheme))
    assert coded.loss.sum() < 0.1 * quadratic(difference, h).sum()


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_with_inputs_that_are_all_alike_the_error_is_that_of_plain_coding(bits: int) -> None:
    weight, scheme = weights(200, 192), Scheme(bits)
    weight[7, 33] = 2.0
    factor = feedback_factor(Moments(torch.eye(192) * 7.0, 100.0), 64)
    coded = encode_feedback(weight, factor, scheme)
    plain = encode_rows(weight, scheme)
    assert coded.error.sum() <= 1.001 * plain.error.sum()
    torch.testing.assert_close(coded.loss, 7.0 * coded.error)


def test_experts_are_coded_as_each_alone() -> None:
    scheme, d = Scheme(4), 96
    weight = weights(3 * 8, d).reshape(3, 8, d)
    x = torch.stack([inputs(200, d, seed) for seed in range(3)])
    h, count = x.mT @ x, torch.tensor([200.0, 200.0, 200.0])
    together = encode_feedback(weight, feedback_factor(shrink(Moments(h.clone(), count)), 64), scheme)
    for e in range(3):
        alone = encode_feedback(weight[e], feedback_factor(shrink(Moments(h[e].clone(), 200.0)), 64), scheme)
        for name, field, part in zip(FeedbackRows._fields, alone, together, strict=True):
            torch.testing.assert_close(part[e], field, msg=name)


def test_a_slice_of_rows_has_the_bytes_it_has_in_the_whole() -> None:
    weight, factor, scheme = weights(40, 192), feedback_factor(shrink(moments(d=192)), 64), Scheme(4)
    whole, part = (encode_feedback(rows, factor, scheme) for rows in (weight, weight[13:30]))
    for name, field, expected in zip(FeedbackRows._fields, part, whole, strict=True):
        torch.testing.assert_close(field, expected[13:30], msg=name)


def test_diagonal_moments_are_factored_as_full_ones_without_the_rest() -> None:
    diagonal = torch.rand(2, 160, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    count = torch.tensor([50.0, 60.0])
    full = feedback_factor(shrink(Moments(torch.diag_embed(diagonal), count)), 64)
    short = feedback_factor(shrink(Moments(diagonal, count, is_diagonal=True)), 64)
    torch.testing.assert_close(short.upper, full.upper)
    torch.testing.assert_close(short.cost, full.cost)


def test_moments_that_are_not_finite_are_an_error_that_names_the_weight() -> None:
    broken = moments()
    broken.h[3, 5] = broken.h[5, 3] = torch.inf
    with pytest.raises(NonFiniteError, match=r"model\.layers\.0\.mlp"):
        feedback_factor(shrink(broken), 64, "model.layers.0.mlp")


def test_moments_that_are_not_positive_definite_are_an_error_that_names_the_weight() -> None:
    with pytest.raises(UnsupportedError, match=r"layer\.7 are not positive definite"):
        feedback_factor(Moments(torch.eye(64) - 0.5, 10.0), 64, "layer.7")


def test_moments_that_are_hardly_positive_definite_get_more_damping() -> None:
    h = shrink(moments(d=64)).h
    mean = h.diagonal().mean() / 1.01
    lowest = torch.linalg.eigvalsh(h).min()
    h -= (lowest + 0.01 * mean) * torch.eye(64)
    factor = feedback_factor(Moments(h, 10.0), 64)
    assert factor.cost.min() > 0


def test_scales_of_another_kind_are_refused() -> None:
    with pytest.raises(UsageError, match="log8"):
        encode_feedback(weights(2, 128), feedback_factor(shrink(moments(d=128)), 128), Scheme.classic(4))
