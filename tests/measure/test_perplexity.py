"""Perplexity agrees with a calculation by hand and with another implementation in float64."""

import math

import pytest
import torch

from hlwq_cli.measure.perplexity import paired, perplexity, score

from .fakes import TableModel, windows

P = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])


def test_known_probabilities_match_a_calculation_by_hand() -> None:
    nlls = score(TableModel(P.log()), windows([[0, 1, 1], [2, 2, 0]]))
    expected = [[0.25, 0.8], [0.6, 0.2]]
    torch.testing.assert_close(nlls, -torch.tensor(expected, dtype=torch.float64).log(), rtol=1e-6, atol=1e-6)
    assert perplexity(nlls).value == pytest.approx((0.25 * 0.8 * 0.6 * 0.2) ** -0.25, rel=1e-6)
    assert perplexity(nlls).tokens == 4


def test_only_tokens_from_first_on_are_scored() -> None:
    nlls = score(TableModel(P.log()), windows([[0, 1, 1, 2]], first=3))
    assert nlls.shape == (1, 1)
    assert float(nlls) == pytest.approx(-math.log(0.1), rel=1e-6)


def test_a_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    found = perplexity(score(TableModel(torch.zeros(50, 50)), windows([[1, 2, 3, 4]])))
    assert found.value == pytest.approx(50, rel=1e-6)
    assert found.error == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("first", [1, 17])
def test_perplexity_equals_an_implementation_in_float64(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hlwq_cli.measure.likelihood._VALUES_AT_ONCE", 5 * 40)
    g = torch.Generator().manual_seed(0)
    table, ids = torch.randn(40, 40, generator=g) * 3, torch.randint(0, 40, (5, 32), generator=g)
    total, n = 0.0, 0
    for row in ids.tolist():
        for at in range(first, len(row)):
            logits = table[row[at - 1]].double().tolist()
            total += math.log(math.fsum(math.exp(x) for x in logits)) - logits[row[at]]
            n += 1
    found = perplexity(score(TableModel(table), windows(ids.tolist(), first)))
    assert found.tokens == n
    assert found.value == pytest.approx(math.exp(total / n), rel=1e-6)


def test_the_standard_error_is_that_of_the_mean_times_the_value() -> None:
    nlls = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64)
    deviation = math.sqrt(sum((x - 3) ** 2 for x in (1, 2, 3, 6)) / 3)
    found = perplexity(nlls)
    assert found.nll == pytest.approx(3)
    assert found.error == pytest.approx(math.exp(3) * deviation / 2)


def test_tokens_that_are_not_finite_are_counted_and_left_out() -> None:
    found = perplexity(torch.tensor([[1.0, math.nan], [3.0, math.inf]], dtype=torch.float64))
    assert (found.tokens, found.non_finite) == (2, 2)
    assert found.nll == pytest.approx(2)


def test_nothing_finite_gives_nan_and_no_error() -> None:
    found = perplexity(torch.full((1, 4), math.nan, dtype=torch.float64))
    assert (found.tokens, found.non_finite) == (0, 4)
    assert math.isnan(found.value)


def test_difference_from_itself_is_zero() -> None:
    nlls = torch.rand(3, 7, dtype=torch.float64)
    found = paired(nlls, nlls)
    assert (found.log_ratio, found.error, found.difference) == (0, 0, 0)


def test_the_paired_error_is_of_differences_token_by_token() -> None:
    a, b = torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([[0.5, 4.0, 1.0]])
    found = paired(a, b)
    assert found.log_ratio == pytest.approx(0.5)
    assert found.error == pytest.approx(0.5 / math.sqrt(3))
    assert found.difference == pytest.approx(math.exp(7 / 3) - math.exp(5.5 / 3))


def test_pairs_not_finite_in_either_are_left_out() -> None:
    a, b = torch.tensor([[1.0, math.inf, 2.0]]), torch.tensor([[0.5, 4.0, math.nan]])
    assert paired(a, b).log_ratio == pytest.approx(0.5)
