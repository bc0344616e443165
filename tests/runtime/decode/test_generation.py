"""The loop over a static cache answers as transformers' own generate does, token by token; here without capturing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from peft import LoraConfig, get_peft_model
from transformers import StoppingCriteria, StoppingCriteriaList

import hlwq_cli.runtime.kv.step_attention as step_attention
from hlwq_cli.runtime.decode import Decoder, Generation
from tests.support.builders import TEXT

from ..loading.test_families import picture_inputs
from ..loads import load, tokens

VARIED = {"do_sample": True, "temperature": 3.0}
"""A model with random weights says one word again and again, and would not notice a key that is lost."""

Family = Callable[[str], Path]


@pytest.fixture(scope="module")
def models(coded: Family) -> Callable[[str], Any]:
    """A family's coded model, decoded; transformers' generate and the static loop run the same one."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = load(coded(name), "dense")
            made[name].generation_config.eos_token_id = None
        return made[name]

    return get


class Watched(Decoder):
    """A decoder that remembers the logits of each token."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.logits: list[torch.Tensor] = []

    def prefill(self, inputs: dict[str, Any], room: int) -> torch.Tensor:
        self.logits = [super().prefill(inputs, room)]
        return self.logits[0]

    def decode_step(self, ids: torch.Tensor) -> torch.Tensor:
        self.logits.append(super().decode_step(ids).clone())
        return self.logits[-1]


def looped(model: Any) -> Generation:
    """Its answers by the static loop, which on a CPU is not the default."""
    generation = Generation(model)
    assert generation.decoding == "transformers"
    generation.decoder = Watched(model)
    return generation


def asked(length: int = 9, new: int = 20, **settings: Any) -> dict[str, Any]:
    """Two prompts, the first padded on the left by four."""
    ids = tokens(2, length)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    common = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": new, "pad_token_id": 0}
    return {"do_sample": False, **common, **settings}


def alone(ids: torch.Tensor) -> dict[str, Any]:
    """Prompts without padding."""
    return asked(new=12) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def same(model: Any, generation: Generation, **options: Any) -> torch.Tensor:
    """Ids that both give, from the same seed, and logits within rounding."""
    torch.manual_seed(5)
    expected = model.generate(**options, output_logits=True, return_dict_in_generate=True)
    torch.manual_seed(5)
    found = generation.generate(**options)
    assert torch.equal(found, expected.sequences)
    assert generation.decoding == "eager"
    assert isinstance(generation.decoder, Watched)
    torch.testing.assert_close(
        torch.stack(generation.decoder.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-4
    )
    return found


def test_a_batch_of_unequal_prompts_is_continued_as_by_transformers(
    models: Callable[[str], Any], family_name: str
) -> None:
    model = models(family_name)
    same(model, looped(model), **asked())
    found = same(model, looped(model), **asked(**VARIED))
    assert len(set(found[0, 9:].tolist())) > 15


def test_coded_execution_is_continued_as_by_transformers(coded: Family, family_name: str) -> None:
    model = load(coded(family_name), "coded")
    model.generation_config.eos_token_id = None
    same(model, looped(model), **asked(new=6))


@pytest.mark.parametrize("name", ["gemma4", "gemma3", "llama"])
def test_answers_one_after_the_other_do_not_see_each_other(models: Callable[[str], Any], name: str) -> None:
    model = models(name)
    generation = looped(model)
    same(model, generation, **asked(30, 12))
    same(model, generation, **asked(5, 12))
    same(model, generation, **(asked(7, 8) | {"input_ids": tokens(2, 7, seed=9)}))
    same(model, generation, **alone(tokens(1, 4)))


@pytest.mark.parametrize(("length", "new"), [(9, 80), (63, 4), (64, 4), (70, 30), (130, 3)])
def test_a_sliding_window_that_is_overrun_keeps_the_latest(models: Callable[[str], Any], length: int, new: int) -> None:
    model = models("gemma4")
    assert model.config.get_text_config().sliding_window == 64
    same(model, looped(model), **asked(length, new, **VARIED))


@pytest.mark.parametrize("name", ["gemma4", "gemma3", "mixtral"])
def test_an_answer_goes_over_the_edge_of_a_length(models: Callable[[str], Any], name: str) -> None:
    model = models(name)
    generation = looped(model)
    same(model, generation, **asked(250, 14, **VARIED))
    assert generation.decoder is not None
    assert generation.decoder._cache is not None
    assert generation.decoder._cache.position.length == 512
    same(model, generation, **asked(9, 3))
    assert generation.decoder._cache.position.length == 256


@pytest.mark.parametrize("layers", [2, 4])
def test_every_layer_may_slide_and_every_layer_may_not(layers: int) -> None:
    torch.manual_seed(1)
    config = t.MixtralConfig(**TEXT | {"num_hidden_layers": layers}, num_local_experts=3, sliding_window=16)
    model = t.MixtralForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    same(model, looped(model), **asked(9, 30, **VARIED))


def test_layers_that_share_keys_and_have_inputs_of_their_own() -> None:
    torch.manual_seed(1)
    config = t.Gemma4TextConfig(
        **TEXT | {"num_hidden_layers": 6},
        vocab_size_per_layer_input=320,
        hidden_size_per_layer_input=16,
        num_kv_shared_layers=2,
        sliding_window=16,
        global_head_dim=32,
        final_logit_softcapping=30.0,
        layer_types=["sliding_attention", "full_attention"] * 3,
    )
    model = t.Gemma4ForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    same(model, looped(model), **asked(9, 30, **VARIED))


@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_a_picture_is_seen(models: Callable[[str], Any], name: str) -> None:
    model = models(name)
    inputs = picture_inputs(name, model)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    settings = {"max_new_tokens": 12, "pad_token_id": 0, **VARIED}
    same(model, looped(model), **inputs, **settings)


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 2.0, "top_p": 0.9, "min_p": 0.001}],
)
def test_the_same_seed_draws_the_same_tokens(models: Callable[[str], Any], settings: dict[str, Any]) -> None:
    model = models("llama")
    same(model, looped(model), **asked(do_sample=True, **settings))


def test_rows_end_at_their_own_end_mark_and_are_padded(models: Callable[[str], Any]) -> None:
    model = models("llama")
    free = model.generate(**asked())[:, 9:]
    ends = [int(free[0, 3]), int(free[1, 11])]
    for given in (ends, ends[0], ends[1]):
        expected = model.generate(**asked(eos_token_id=given))
        assert torch.equal(looped(model).generate(**asked(eos_token_id=given)), expected)
    assert looped(model).generate(**asked(eos_token_id=ends)).shape[1] < 9 + 20
    same(model, looped(model), **asked(suppress_tokens=ends))


class Cancelled(StoppingCriteria):
    """Stops after a number of tokens."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.left -= 1
        return torch.full((input_ids.shape[0],), self.left <= 0, device=input_ids.device)


def test_a_criterion_of_the_callers_stops_it(models: Callable[[str], Any]) -> None:
    model = models("llama")
    expected = model.generate(**asked(), stopping_criteria=StoppingCriteriaList([Cancelled(5)]))
    found = looped(model).generate(**asked(), stopping_criteria=StoppingCriteriaList([Cancelled(5)]))
    assert torch.equal(found, expected)
    assert found.shape == (2, 14)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 2, "eos_token_id": 5},
        {"past_key_values": True},
    ],
)
def test_what_the_loop_does_not_do_is_left_to_transformers(
    models: Callable[[str], Any], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models("llama")
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(model, "generate", lambda **options: given.append(options))
    looped(model).generate(**asked(**settings))
    assert settings.items() <= given[0].items()


def test_answers_asked_for_at_once_come_one_after_the_other(models: Callable[[str], Any]) -> None:
    model = models("llama")
    generation = looped(model)
    prompts = [tokens(1, length, seed=length) for length in (4, 6, 8, 10)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda ids: generation.generate(**alone(ids)), prompts))
    for ids, answer in zip(prompts, found, strict=True):
        assert torch.equal(answer, model.generate(**alone(ids)))


def test_a_model_whose_steps_ask_for_lengths_is_left_to_transformers(
    models: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models("llama")
    forward = model.model.forward

    def curious(*args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        cache.get_seq_length()
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", curious)
    generation = looped(model)
    assert torch.equal(generation.generate(**asked()), model.generate(**asked()))
    assert generation.decoding == "transformers"


def test_a_step_uses_the_attention_that_copies_no_keys(
    models: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, family_name: str
) -> None:
    shapes = []
    attend = step_attention.scaled_dot_product_attention

    def watch(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shapes.append((query.shape[1], key.shape[1]))
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(step_attention, "scaled_dot_product_attention", watch)
    model = models(family_name)
    generation = looped(model)
    generation.generate(**asked(new=2))
    config = model.config.get_text_config()
    assert generation.decoder is not None
    apart = bool(generation.decoder.runner.layers)  # their own steps attend elsewhere
    assert len(shapes) == (1 if apart else 2) * config.num_hidden_layers  # a trial and a step
    assert all(queries == keys < config.num_attention_heads for queries, keys in shapes)
    assert config._attn_implementation == "sdpa"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks for the old name
def test_adapters_are_not_passed_by(coded: Family) -> None:
    """They are put into a model in place, also after it has answered."""
    model = load(coded("gemma4"))
    generation = looped(model)
    before = generation.generate(**asked(new=4))
    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    adapted = get_peft_model(model, settings)
    found = generation.generate(**asked(new=4))
    assert generation.decoding == "transformers"
    assert torch.equal(found, adapted.base_model.model.generate(**asked(new=4)))
    assert not torch.equal(found, before)
