"""Drawn choices and guesses are what they are said to be."""

import pytest
import torch

from scripts.bench.synthetic_routing import STICKY, drawn_choices, drawn_guesses


def shared(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of a's experts that b names in the same place."""
    return float((a[..., None] == b[..., None, :]).any(-1).float().mean())


@pytest.mark.parametrize("recall", [0.0, 0.79, 1.0])
def test_guesses_name_a_drawn_expert_with_their_probability(recall: float) -> None:
    table = drawn_choices("uniform", 3, 128, 8)
    guesses = drawn_guesses(table, 128, recall)
    assert shared(table, guesses) == pytest.approx(recall + (1 - recall) ** 2 * 7 / 127, abs=0.005)
    assert (guesses >= 0).all()
    assert (guesses < 128).all()
    assert shared(guesses[..., :1], table[..., :1]) < 0.2  # in any order


def test_sticky_choices_stay_with_their_probability() -> None:
    table = drawn_choices("sticky", 2, 128, 8)
    assert shared(table[:, 1:], table[:, :-1]) == pytest.approx(STICKY, abs=0.01)
    assert all(len(set(row)) == 8 for row in table.flatten(0, 1).tolist())
