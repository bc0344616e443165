"""The check of a GPU against the CPU, run where there is none: codes and decoded weights, both on the CPU."""

from pathlib import Path

import pytest

from hlwq_cli.checkpoint import load_recipe, quantize
from scripts.checks import same_answers
from scripts.checks.same_answers import Comparison, compare, row


def test_codes_and_decoded_weights_of_the_sample_answer_alike_with_its_head_in_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_answers, "PROMPTS", ("We",))
    monkeypatch.setattr(same_answers, "NEW_TOKENS", 12)
    monkeypatch.setattr(same_answers, "NUM_READ", 32)
    monkeypatch.setattr(same_answers, "STEPS", (8, 32))
    quantize("sample", tmp_path / "out", load_recipe("head"))
    comparison = compare(str(tmp_path / "out"), "cpu", windows=1, window=64)
    assert comparison.different == {}
    assert 1 < comparison.perplexities[0] < 1000
    assert comparison.change < 1e-5
    assert all(0 < kld < 5e-3 for kld in (*comparison.coded.values(), *comparison.dense.values()))


GOOD = Comparison("out", {}, (20.0, 20.001), {1: 2e-4}, {1: 1.9e-4})


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"different": {"We": 3}}, "'We' has a different answer from token 3 on"),
        ({"perplexities": (20.0, 20.1)}, "perplexity is 20.1 instead of 20.0"),
        ({"perplexities": (20.0, float("nan"))}, "perplexity is nan"),
        ({"coded": {1: 4e-4}}, "divergence 1 tokens at a time is 0.0004, decoded 0.00019"),
        ({"coded": {1: float("nan")}}, "divergence 1 tokens at a time is nan"),
    ],
)
def test_what_is_not_as_it_should_be_is_said(bad: dict[str, object], says: str) -> None:
    assert GOOD.failures == []
    (said,) = Comparison(**{**GOOD.__dict__, **bad}).failures  # type: ignore[arg-type]
    assert says in said


def test_the_first_difference_is_found() -> None:
    find = same_answers.first_difference
    assert (find([1, 2], [1, 2]), find([1, 2], [1, 3]), find([1], [1, 2])) == (None, 1, 1)
    assert "the same" in row(GOOD)
