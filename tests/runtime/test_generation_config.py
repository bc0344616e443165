"""Settings of generation_config.json: they work, are ignored, or are refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hlwq_cli.errors import UnsupportedError

from . import kinds
from .kinds import by_transformers, opened

GENERATION = [
    {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True},
    {"stop_strings": ["no such text"]},
    {"token_healing": True},
    {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"num_beams": 1, "penalty_alpha": 0.6, "top_k": 4},
    {"dola_layers": "high"},
    {"constraints": []},
    {"prompt_lookup_num_tokens": 3},
    {"assistant_early_exit": 1},
    {"cache_implementation": "quantized"},
    {"exponential_decay_length_penalty": [2, 1.1], "eos_token_id": None},
    {"is_assistant": True},
    {"max_length": 5},
]


@pytest.mark.parametrize("settings", GENERATION, ids=lambda s: next(iter(s)))
def test_settings_of_the_generation_config_work_or_are_ignored(settings: Any, tmp_path: Path) -> None:
    kinds.llama(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    plain = opened(tmp_path).generate(["Hello", "Hi"], max_new_tokens=4)
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    model = opened(tmp_path)
    found = model.generate(["Hello", "Hi"], max_new_tokens=4)
    if settings.get("num_beams", 1) == 1:
        assert found == plain
    assert "".join(model.stream("Hello", max_new_tokens=4)) == plain[0]


def test_a_stop_string_of_the_generation_config_ends_an_answer_also_beside_another(tmp_path: Path) -> None:
    model = opened(kinds.llama(tmp_path))
    whole = str(model.generate("Hello", max_new_tokens=40))
    stop = next(letter for letter in whole[1:] if letter.isascii() and letter.isprintable())
    model.model.generation_config.stop_strings = [stop]
    ended = whole[: whole.index(stop) + 1]
    assert model.generate("Hello", max_new_tokens=40) == ended
    assert model.generate("Hello", max_new_tokens=40, stop=["no such text"]) == ended


def test_beams_are_searched_as_by_transformers(tmp_path: Path) -> None:
    (kinds.llama(tmp_path) / "generation_config.json").write_text(json.dumps({"num_beams": 3}))
    model = opened(tmp_path)
    assert "Hello" + str(model.generate("Hello", max_new_tokens=6)) == by_transformers(model, "Hello", max_new_tokens=6)


@pytest.mark.parametrize("settings", [{"top_k": -1, "do_sample": True}, {"num_beams": 0}])
def test_an_invalid_generation_config_is_a_sentence(settings: Any, tmp_path: Path) -> None:
    (kinds.llama(tmp_path) / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM cannot answer this: "):
        opened(tmp_path).generate("Hello", temperature=1.0, max_new_tokens=3)
