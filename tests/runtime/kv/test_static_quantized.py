"""The static loop over keys and values in codes answers as transformers' loop over the same codes does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from hlwq_cli.runtime.kv import CodedLayer, KVBits, StaticCache, cache_argument, code_kv_cache, coded_cache
from hlwq_cli.runtime.kv.static_quantized import CodedRingLayer
from tests.support.builders import TEXT

from ..decode.test_generation import VARIED, asked, looped, same
from ..loads import load, tokens
from .test_models import gemma2

Family = Callable[[str], Path]


@pytest.fixture(scope="module")
def models(coded: Family) -> Callable[[str], Any]:
    """Decoded models, whose keys and values lie in codes of 4 and 3 bits."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = gemma2().eval() if name == "gemma2" else load(coded(name), "dense")
            made[name].generation_config.eos_token_id = None
            code_kv_cache(made[name], KVBits(4, 3))
        return made[name]

    return get


@pytest.mark.parametrize("name", ["gemma2", "gemma4", "llama", "qwen3_moe"])
def test_a_batch_of_unequal_prompts_is_continued_as_by_transformers(models: Callable[[str], Any], name: str) -> None:
    model = models(name)
    same(model, looped(model), **asked(110, 40, **VARIED))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 95, 96, 97, 128])
def test_prompts_round_the_edges_of_what_is_coded(models: Callable[[str], Any], length: int) -> None:
    model = models("llama")
    ids = tokens(1, length)
    same(model, looped(model), **asked(new=40, **VARIED) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_answers_one_after_the_other_do_not_see_each_other(models: Callable[[str], Any]) -> None:
    model = models("gemma4")
    generation = looped(model)
    for length, new in ((130, 12), (5, 100), (70, 30), (250, 14)):
        same(model, generation, **asked(length, new, **VARIED))


def test_codes_are_those_of_the_growing_cache(models: Callable[[str], Any]) -> None:
    model, ids = models("llama"), tokens(2, 120)
    generation = looped(model)
    answer = generation.generate(**asked(new=60) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    growing = coded_cache(model.config, KVBits(4, 3))
    with torch.inference_mode():
        model(answer[:, :-1], **cache_argument(model, growing))
    assert generation.decoder is not None
    cache = generation.decoder._cache
    assert cache is not None
    assert cache.coded == growing.layers[0].coded == 96  # of 179 tokens
    for mine, its in zip(cache.layers, growing.layers, strict=True):
        assert isinstance(mine, CodedRingLayer)
        assert isinstance(its, CodedLayer)
        for side, other in ((mine.key_store, its.key_store), (mine.value_store, its.value_store)):
            assert (side.codes[:, :, :96] == other.codes[:, :, :96]).float().mean() > 0.999  # inputs differ by rounding


def test_every_token_has_room_for_codes_and_few_are_exact() -> None:
    config = t.LlamaConfig(**TEXT)
    cache = StaticCache(config, 1, 4096, torch.float32, torch.device("cpu"), KVBits(4, 3))
    layer = cache.layers[0]
    states = torch.randn(1, 2, 100, 64)
    layer.update(states, states)
    assert layer.key_store.codes.shape == (1, 2, 4096, 32)
    assert layer.value_store.codes.shape == (1, 2, 4096, 24)
    assert layer.key_store.ring.shape == (1, 2, 96, 64)
