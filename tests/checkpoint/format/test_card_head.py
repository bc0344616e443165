"""The head of a source's card: whatever it holds, a run that coded everything is not ended by it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from hlwq_cli.checkpoint.format.card_head import card_warnings, front_matter
from tests.cli.run_command import hlwq
from tests.support.builders import tiny_llama

ODD = {
    "a date that does not exist": "date: 2024-02-30\n",
    "a number that is none": "version: 0x_\n",
    "binary digits": "x: 0b_\n",
    "3,000 brackets": "x: " + "[" * 3000 + "]" * 3000 + "\n",
    "a tag of Python": "x: !!python/object/apply:os.system ['true']\n",
    "keys that merge themselves": "a: &a {x: 1}\nb: &b {<<: [*a, *a, *a]}\nc: {<<: [*b, *b, *b]}\n",
    "an open quote": "x: 'never closed\n",
}


@pytest.mark.parametrize("what", ODD)
def test_odd_keys_do_not_keep_the_licence_from_the_card(tmp_path: Path, what: str) -> None:
    model = tiny_llama(tmp_path / "m")
    (model / "README.md").write_text(f"---\nlicense: mit\nlanguage:\n- en\n- no\n{ODD[what]}---\n# a card\n")
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    head = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert (head["license"], head["language"]) == ("mit", ["en", "no"])


@pytest.mark.parametrize(
    "value", ["[" * 3000, "{a: b}", "&a [*a]", "x" * 100_000, "'open", "[[a]]"], ids=lambda v: v[:6]
)
def test_licence_that_cannot_be_read_is_left_out_with_a_warning(tmp_path: Path, value: str) -> None:
    model = tiny_llama(tmp_path / "m")
    (model / "README.md").write_text(f"---\nlicense: {value}\n---\n# a card\n")
    ran = hlwq("quantize", model, tmp_path / "out", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["warnings"] == [
        "The head of README.md is not valid, so the card may lack licence and language."
    ]
    assert "license" not in yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])


@pytest.mark.parametrize(
    "text",
    [
        "---\n" + "\n" * 150_000,
        "---" + " \n" * 150_000 + "---\n",
        "---\n" + "-\n" * 150_000,
        "\n---" * 150_000,
        "---\n" * 150_000,
    ],
    ids=["lines", "lines and an end", "items", "rules", "only rules"],
)
def test_long_head_is_read_in_a_moment(tmp_path: Path, text: str) -> None:
    card = tmp_path / "README.md"
    card.write_text(text)
    began = time.process_time()
    assert front_matter(card) == {}
    assert time.process_time() - began < 2


def test_card_that_is_larger_than_any_card_is_not_read(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    with card.open("wb") as file:
        file.truncate(10**11)
    assert front_matter(card) == {}
    assert card_warnings(card)


def test_ordinary_card_gives_no_warning(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    for text in ("", "# a card\n", "---\nlicense: mit\n---\n", "---\ntags: [a]\n---\n", "---\nlicense: null\n---\n"):
        card.write_text(text)
        assert card_warnings(card) == ()
    assert front_matter(tmp_path / "missing.md") == {}


def test_card_in_latin_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes("---\nlicense: mit\nauthor: José\n---\n".encode("latin-1"))
    assert front_matter(tmp_path / "README.md") == {"license": "mit"}
