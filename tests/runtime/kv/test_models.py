"""Models that keep keys and values in codes: however they are called, they read the same codes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from hlwq_cli.errors import UnsupportedError
from hlwq_cli.runtime import HLWQModel
from hlwq_cli.runtime.kv import CodedLayer, KVBits, cache_argument, code_kv_cache, coded_cache
from hlwq_cli.runtime.loading import load_model
from tests.support.builders import TEXT

from ..loads import logits, tokens

LENGTH = 150
Family = Callable[[str], Path]


def gemma2() -> Any:
    """The family that softcaps its attention."""
    import transformers as t

    torch.manual_seed(0)
    config = t.Gemma2Config(**TEXT, query_pre_attn_scalar=32, attn_logit_softcapping=2.0, sliding_window=40)
    return t.Gemma2ForCausalLM(config)


def make(name: str, family: Family, bits: Any = 4) -> Any:
    """A family's model in float32, with its keys and values in codes, or dense where `bits` is None."""
    kv = None if bits is None else KVBits.parse(bits)
    if name != "gemma2":
        return load_model(str(family(name)), dtype="float32", device="cpu", kv_bits=kv)
    model = gemma2().eval()
    if kv is not None:
        code_kv_cache(model, kv)
    return model


def in_pieces(model: Any, ids: torch.Tensor, cuts: list[int], cache: Cache, mask: Any = None) -> torch.Tensor:
    """Logits of tokens given in pieces."""
    found, start = [], 0
    for cut in cuts:
        part = {} if mask is None else {"attention_mask": mask[:, : start + cut]}
        found.append(logits(model, input_ids=ids[:, start : start + cut], **part, **cache_argument(model, cache)))
        start += cut
    return torch.cat(found, dim=1)


FAMILIES = ["gemma2", "gemma4", "llama", "mixtral", "qwen3", "qwen3_moe"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_reads_alike_whole_in_pieces_and_token_by_token(name: str, family: Family) -> None:
    model, ids = make(name, family), tokens(2, LENGTH)
    whole = logits(model, input_ids=ids)
    config = model.config
    for cuts in ([100, 1, 49], [110] + [1] * 40):
        found = in_pieces(model, ids, cuts, coded_cache(config, KVBits(4, 4)))
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_codes_change_logits_little_and_less_the_wider_they_are(name: str, family: Family) -> None:
    ids = tokens(2, LENGTH)
    dense = logits(make(name, family, None), input_ids=ids)
    errors = [float((logits(make(name, family, bits), input_ids=ids) - dense).square().mean()) for bits in (2, 4, 8)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 0
    assert errors[2] < 1e-4 * float(dense.square().mean())
    until = logits(make(name, family, 2), input_ids=ids[:, :95])
    torch.testing.assert_close(until, dense[:, :95], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["gemma2", "gemma4", "llama"])
def test_padding_on_the_left_changes_nothing(name: str, family: Family) -> None:
    model, ids = make(name, family), tokens(2, LENGTH)
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, :32] = 0
    padded = in_pieces(model, ids, [140] + [1] * 10, coded_cache(model.config, KVBits(4, 4)), mask)
    alone = in_pieces(model, ids[:1], [LENGTH], coded_cache(model.config, KVBits(4, 4)))
    torch.testing.assert_close(padded[:1], alone, rtol=1e-3, atol=1e-3)
    assert padded.isfinite().all()


@pytest.mark.parametrize("name", ["gemma4", "llama"])
def test_generates_alike_with_a_cache_of_its_own_and_one_given(name: str, family: Family) -> None:
    model, ids = make(name, family), tokens(2, 90)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    settings |= {"min_new_tokens": 40}
    out = model.generate(ids, **settings)
    cache = coded_cache(model.config, KVBits(4, 4))
    assert torch.equal(model.generate(ids, **settings, **cache_argument(model, cache)), out)
    assert sum(layer.coded for layer in cache.layers if isinstance(layer, CodedLayer)) > 0
    step = logits(model, input_ids=out[:, :-1])[:, 89:].argmax(-1)
    assert (step == out[:, 90:]).float().mean() > 0.95


def test_several_answers_go_on_from_one_prompt(family: Family) -> None:
    model, ids = make("llama", family), tokens(1, 120)
    prompt = coded_cache(model.config, KVBits(4, 4))
    logits(model, input_ids=ids[:, :100], **cache_argument(model, prompt))
    whole = logits(model, input_ids=ids)[:, 100:]
    for _ in range(2):
        found = logits(model, input_ids=ids[:, 100:], **cache_argument(model, copy.deepcopy(prompt)))
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3)
    assert prompt.get_seq_length() == 100


def test_beams_are_those_of_wide_codes_and_of_a_dense_cache(family: Family) -> None:
    ids = tokens(2, 110)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    settings |= {"num_beams": 3}
    dense = make("llama", family, None).generate(ids, **settings)
    assert torch.equal(make("llama", family, 8).generate(ids, **settings), dense)


def test_a_cache_that_a_user_made_and_holds_is_filled(family: Family) -> None:
    model, ids = make("llama", family), tokens(1, 130)
    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        found = in_pieces(model, ids, [100, 30], cache)
        torch.testing.assert_close(found, logits(model, input_ids=ids), rtol=1e-3, atol=1e-3)
        assert [type(layer) for layer in cache.layers] == [CodedLayer, CodedLayer]


def test_a_cache_that_holds_no_codes_is_refused(family: Family) -> None:
    model, ids = make("llama", family), tokens(1, 8)
    static = StaticCache(config=model.config, max_cache_len=64)
    dense = DynamicCache()
    for i in range(2):
        dense.update(torch.zeros(1, 2, 3, 32), torch.zeros(1, 2, 3, 32), i)
    for cache in (static, dense):
        with pytest.raises(UnsupportedError, match=r"cache is quantized, and a .* is not"):
            logits(model, input_ids=ids, **cache_argument(model, cache))


def test_attention_with_sinks_is_refused() -> None:
    import transformers as t

    settings = {**TEXT, "num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size": 64}
    model = t.GptOssForCausalLM(t.GptOssConfig(**settings)).eval()
    code_kv_cache(model, KVBits(4, 4))
    with pytest.raises(UnsupportedError, match="s_aux"):
        logits(model, input_ids=tokens(1, 4))


def test_hlwq_model_generates_and_streams_through_codes() -> None:
    model = HLWQModel.from_pretrained("sample", dtype="float32", device="cpu", kv_cache_nbits="8,8")
    dense = HLWQModel.from_pretrained("sample", dtype="float32", device="cpu")
    prompts = ["My fellow citizens, " * 30, "The state of our union is"]
    options: dict[str, Any] = {"max_new_tokens": 12, "chat": False}
    assert model.generate(prompts, **options) == dense.generate(prompts, **options)
    assert "".join(model.stream(prompts[0], **options)) == dense.generate(prompts[0], **options)
