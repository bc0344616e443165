"""Tokenizers, padding and contexts of every kind: a prompt is answered, or refused with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hlwq_cli.errors import CorruptError, UsageError
from hlwq_cli.runtime import HLWQModel

from . import kinds
from .kinds import change, opened


def test_inputs_that_the_model_does_not_take_are_dropped(tmp_path: Path) -> None:
    kinds.llama(tmp_path)
    plain = opened(tmp_path).generate("Hello", max_new_tokens=4)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    change(tmp_path, "tokenizer_config.json", model_input_names=names)
    model = opened(tmp_path)
    assert "token_type_ids" in model.tokenizer("Hello")
    assert set(model.prepare(["Hello"])) == {"input_ids", "attention_mask"}
    assert model.generate("Hello", max_new_tokens=4) == plain


@pytest.mark.parametrize("special", [{"pad_token": None}, {"pad_token": None, "eos_token": None}])
def test_without_a_token_for_padding_one_prompt_and_several_are_answered(special: Any, tmp_path: Path) -> None:
    prompts = ["Hello there", "Hi"]
    expected = opened(kinds.llama(tmp_path / "usual")).generate(prompts, max_new_tokens=5)
    model = opened(kinds.llama(tmp_path / "without", **special))
    assert model.generate(prompts, max_new_tokens=5) == expected
    assert [model.generate(p, max_new_tokens=5) for p in prompts] == expected
    assert ["".join(model.stream(p, max_new_tokens=5)) for p in prompts] == expected


def test_a_token_for_padding_beyond_the_vocabulary_is_not_given_to_the_model(tmp_path: Path) -> None:
    prompts = ["Hello there", "Hi"]
    model = opened(kinds.llama(tmp_path))
    model.tokenizer.add_tokens([f"<more {i}>" for i in range(100)])
    model.tokenizer.pad_token = "<more 99>"
    model = HLWQModel(model.model, model.tokenizer)
    assert model.tokenizer.pad_token_id >= 320
    expected = [model.generate(p, max_new_tokens=5) for p in prompts]
    assert model.generate(prompts, max_new_tokens=5) == expected


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    model = opened(kinds.llama(tmp_path))
    model.tokenizer.add_tokens([f"<more {i}>" for i in range(100)])
    with pytest.raises(CorruptError, match="gives token 359, and the model has a vocabulary of 320"):
        model.generate("<more 99>")


@pytest.mark.parametrize("text", ["", ["Hello", ""]])
def test_an_empty_prompt_is_refused(text: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="The prompt is empty"):
        opened(kinds.llama(tmp_path)).generate(text)


@pytest.mark.parametrize(("stated", "expected"), [(-1, None), (0, None), (10**12, None), (40, 40)])
def test_a_context_that_makes_no_sense_is_none(stated: int, expected: int | None, tmp_path: Path) -> None:
    model = opened(kinds.llama(tmp_path))
    model.model.config.max_position_embeddings = stated
    model = HLWQModel(model.model, model.tokenizer)
    assert model.max_context == expected
    assert model.generate("Hello", max_new_tokens=2) is not None


@pytest.mark.parametrize(("make", "context"), [(kinds.gpt2, 64), (kinds.roberta_decoder, 65), (kinds.llama, 128)])
def test_a_prompt_longer_than_the_context_is_refused(make: Any, context: int, tmp_path: Path) -> None:
    model = opened(make(tmp_path))
    assert model.max_context == context
    pieces = model.stream("a" * (context - 3), max_new_tokens=9)
    list(pieces)
    assert pieces.tokens <= 3
    with pytest.raises(UsageError, match=f"has {context} tokens, and the context of this model is {context}"):
        model.generate("a" * context)
