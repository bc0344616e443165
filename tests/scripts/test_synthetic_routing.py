"""Synthetic routings and predictions have the probabilities that they are documented with."""

import pytest
import torch

from scripts.bench.synthetic_routing import STICKY_PROBABILITY, synthetic_predictions, synthetic_topk_ids


def shared(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of a's experts that b names in the same place."""
    return float((a[..., None] == b[..., None, :]).any(-1).float().mean())


@pytest.mark.parametrize("recall", [0.0, 0.79, 1.0])
def test_guesses_name_a_drawn_expert_with_their_probability(recall: float) -> None:
    table = synthetic_topk_ids("uniform", 3, 128, 8)
    predictions = synthetic_predictions(table, 128, recall)
    assert shared(table, predictions) == pytest.approx(recall + (1 - recall) ** 2 * 7 / 127, abs=0.005)
    assert (predictions >= 0).all()
    assert (predictions < 128).all()
    assert shared(predictions[..., :1], table[..., :1]) < 0.2  # in any order


def test_sticky_choices_stay_with_their_probability() -> None:
    table = synthetic_topk_ids("sticky", 2, 128, 8)
    assert shared(table[:, 1:], table[:, :-1]) == pytest.approx(STICKY_PROBABILITY, abs=0.01)
    assert all(len(set(row)) == 8 for row in table.flatten(0, 1).tolist())
