"""Divergence agrees with its definition."""

import math

import pytest
import torch

from hlwq_cli.errors import UsageError
from hlwq_cli.measure.divergence import compare

from .fakes import TableModel, windows

P = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
Q = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.7, 0.2], [0.3, 0.3, 0.4]])
IDS = [[0, 1, 2, 0]]  # positions after 0, 1 and 2 are scored


def kl(p: list[float], q: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))


BY_HAND = [kl(p, q) for p, q in zip(P.tolist(), Q.tolist(), strict=True)]


def test_divergence_from_itself_is_zero() -> None:
    model = TableModel(torch.randn(30, 30, generator=torch.Generator().manual_seed(0)))
    found = compare(model, model, windows([list(range(30))]))
    assert (found.divergence.mean, found.divergence.maximum, found.divergence.same_top) == (0, 0, 1)
    assert (found.delta.log_ratio, found.delta.error) == (0, 0)
    assert found.perplexity == found.reference_perplexity


def test_three_symbols_match_a_calculation_by_hand() -> None:
    found = compare(TableModel(Q.log()), TableModel(P.log()), windows(IDS)).divergence
    mean = sum(BY_HAND) / 3
    assert found.mean == pytest.approx(mean, rel=1e-5)
    deviation = math.sqrt(sum((k - mean) ** 2 for k in BY_HAND) / 2)
    assert found.error == pytest.approx(deviation / math.sqrt(3), rel=1e-5)
    assert found.maximum == pytest.approx(max(BY_HAND), rel=1e-5)
    assert found.percentiles["50"] == pytest.approx(sorted(BY_HAND)[1], rel=1e-5)
    assert set(found.percentiles) == {"50", "90", "99", "99.9"}
    assert found.same_top == pytest.approx(2 / 3)
    assert found.same_top_error == pytest.approx(math.sqrt(2 / 27))
    assert (found.positions, found.non_finite) == (3, 0)


def test_divergence_is_of_the_reference_from_the_model_and_not_reversed() -> None:
    one = compare(TableModel(Q.log()), TableModel(P.log()), windows([[1, 0]])).divergence.mean
    assert one == pytest.approx(BY_HAND[1], rel=1e-5)
    assert one != pytest.approx(kl(Q[1].tolist(), P[1].tolist()), rel=1e-3)


def test_buckets_are_by_the_references_confidence() -> None:
    found = compare(TableModel(Q.log()), TableModel(P.log()), windows([[1, 2, 1, 0]])).divergence.buckets
    assert [(b.low, b.high, b.tokens) for b in found] == [(0.5, 0.75, 1), (0.75, 0.9, 2)]
    assert [b.kld for b in found] == pytest.approx([BY_HAND[2], BY_HAND[1]], rel=1e-5)
    assert [b.same_top for b in found] == [1, 1]


def test_perplexities_are_those_of_each_model() -> None:
    found = compare(TableModel(Q.log()), TableModel(P.log()), windows([[0, 1, 1]]))
    assert found.perplexity.value == pytest.approx((0.5 * 0.7) ** -0.5, rel=1e-5)
    assert found.reference_perplexity.value == pytest.approx((0.25 * 0.8) ** -0.5, rel=1e-5)
    assert found.delta.log_ratio == pytest.approx(0.5 * math.log(0.25 * 0.8 / (0.5 * 0.7)), rel=1e-5)


def test_noise_floor_is_the_cost_of_rounding_for_rounded_logits() -> None:
    z = torch.tensor([8.0, 4.0, 2.0, -1.0], dtype=torch.float64)
    p, r = z.softmax(0), (z * torch.tensor([1 + 2**-9, 1 - 2**-9] * 2)).softmax(0)
    expected = float((p * (p / r).log()).sum())
    table = z.float().bfloat16().repeat(4, 1)
    found = compare(TableModel(table), TableModel(table), windows([[0, 1, 2]])).divergence
    assert found.mean == 0
    assert found.noise_floor == pytest.approx(expected, rel=5e-2)  # float32 loses some of so small a sum
    assert found.noise_floor > 1e-6


def test_a_token_the_reference_rules_out_adds_nothing() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.5, 0.25]])
    found = compare(TableModel(q.log()), TableModel(p.log()), windows([[0, 0]])).divergence
    assert found.mean == pytest.approx(0.5 * math.log(2), rel=1e-5)


def test_positions_that_are_not_finite_are_counted_and_left_out() -> None:
    sick = Q.log()
    sick[1] = math.nan
    found = compare(TableModel(sick), TableModel(P.log()), windows(IDS))
    assert (found.divergence.positions, found.divergence.non_finite) == (2, 1)
    assert found.divergence.mean == pytest.approx((BY_HAND[0] + BY_HAND[2]) / 2, rel=1e-5)
    assert found.perplexity.non_finite == 1


def test_nothing_finite_gives_nan_and_no_error() -> None:
    found = compare(TableModel(torch.full((3, 3), math.nan)), TableModel(P.log()), windows(IDS))
    assert (found.divergence.positions, found.divergence.non_finite) == (0, 3)
    assert math.isnan(found.divergence.mean)


def test_another_vocabulary_is_refused_and_both_sizes_named() -> None:
    with pytest.raises(UsageError, match=r"4.*3"):
        compare(TableModel(torch.zeros(3, 3)), TableModel(torch.zeros(4, 4)), windows(IDS))
