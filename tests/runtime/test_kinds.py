"""HLWQModel answers with every kind of model, or refuses it with a sentence that says what it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.errors import CorruptError, UnsupportedError, UsageError
from hlwq_cli.runtime import HLWQModel, load_processor
from hlwq_cli.runtime.chat import Turn
from hlwq_cli.runtime.loading import check_answers_text

from . import kinds

PROMPT = "translate English to German: Hello"


def change(folder: Path, name: str, **settings: Any) -> None:
    """Change keys of a JSON file, which may be absent."""
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | settings))


def opened(folder: Path) -> HLWQModel:
    return HLWQModel.from_pretrained(str(folder), device="cpu", dtype="float32")


def by_transformers(model: HLWQModel, text: str, **options: Any) -> str:
    """The answer of transformers' own generate, with the whole of what it returns decoded."""
    inputs = model.tokenizer(text, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    out = model.model.generate(**inputs, do_sample=False, **options)
    found: str = model.tokenizer.batch_decode(out, skip_special_tokens=True)[0]
    return found


@pytest.mark.parametrize("make", [kinds.t5, kinds.bart, kinds.marian])
def test_an_encoder_decoder_answers_whole_and_in_pieces(make: Callable[[Path], Path], tmp_path: Path) -> None:
    quantize(str(make(tmp_path / "source")), tmp_path / "coded", load_recipe())
    model = opened(tmp_path / "coded")
    model.model.generation_config.suppress_tokens = [*range(4), *range(260, 320)]  # which have no text
    found = model.generate(PROMPT, max_new_tokens=6)
    assert found
    assert found == by_transformers(model, PROMPT, max_new_tokens=6)
    assert "".join(model.stream(PROMPT, max_new_tokens=6)) == found


@pytest.mark.parametrize("make", [kinds.t5, kinds.bart])
def test_a_batch_of_an_encoder_decoder_equals_each_alone(make: Callable[[Path], Path], tmp_path: Path) -> None:
    model = opened(make(tmp_path))
    prompts = [PROMPT, "Hi", "Good morning"]
    assert model.generate(prompts, max_new_tokens=8) == [model.generate(p, max_new_tokens=8) for p in prompts]


def test_an_encoder_decoder_has_the_whole_context_for_prompt_and_answer_each(tmp_path: Path) -> None:
    model = opened(kinds.bart(tmp_path))
    model.model.generation_config.eos_token_id = None
    pieces = model.stream("a" * 64, max_new_tokens=100)
    list(pieces)
    assert (pieces.prompt_tokens, pieces.tokens) == (64, 63)
    with pytest.raises(UsageError, match="has 65 tokens, and the context of this model is 64"):
        model.generate("a" * 65)


def test_the_class_is_the_one_that_the_config_names(tmp_path: Path) -> None:
    assert type(opened(kinds.marian(tmp_path)).model).__name__ == "MarianMTModel"


@pytest.mark.parametrize(
    ("make", "name"), [(kinds.t5, "T5ForConditionalGeneration"), (kinds.llama, "LlamaForCausalLM")]
)
@pytest.mark.parametrize("architectures", [None, ["NoSuchModel"]])
def test_without_a_known_class_the_type_of_the_model_decides(
    make: Callable[[Path], Path], name: str, architectures: Any, tmp_path: Path
) -> None:
    change(make(tmp_path), "config.json", architectures=architectures)
    assert type(opened(tmp_path).model).__name__ == name


def encoders() -> dict[str, Callable[[], Any]]:
    import transformers as t

    tokens = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    return {
        "an encoder without a head (BertModel)": lambda: t.BertModel(t.BertConfig(**kinds.ENCODER)),
        "a masked language model (BertForMaskedLM)": lambda: t.BertForMaskedLM(t.BertConfig(**kinds.ENCODER)),
        "a masked language model (ModernBertForMaskedLM)": lambda: t.ModernBertForMaskedLM(
            t.ModernBertConfig(**kinds.ENCODER, **tokens)
        ),
        "a classifier (RobertaForSequenceClassification)": lambda: t.RobertaForSequenceClassification(
            t.RobertaConfig(**kinds.ENCODER)
        ),
        "a model without a head (LlamaModel)": lambda: t.LlamaModel(t.LlamaConfig(**kinds.TEXT)),
    }


@pytest.mark.parametrize("kind", sorted(encoders()))
def test_a_model_that_does_not_generate_is_refused_and_transformers_named(kind: str, tmp_path: Path) -> None:
    quantize(str(kinds.save(encoders()[kind](), tmp_path / "source")), tmp_path / "coded", load_recipe())
    with pytest.raises(UnsupportedError) as refused:
        opened(tmp_path / "coded")
    assert refused.value.what == f"{tmp_path / 'coded'} is {kind}, which does not generate text."
    name = kind.partition("(")[2].rstrip(")")
    assert "after `import hlwq_cli`" in refused.value.hint
    assert f"`{name}.from_pretrained(" in refused.value.hint


def test_an_encoder_without_architectures_is_not_taken_for_a_causal_model(tmp_path: Path) -> None:
    import transformers as t

    change(kinds.save(t.BertForMaskedLM(t.BertConfig(**kinds.ENCODER)), tmp_path), "config.json", architectures=None)
    with pytest.raises(UnsupportedError, match="is a masked language model"):
        opened(tmp_path)


def test_a_model_that_takes_audio_is_refused(tmp_path: Path) -> None:
    import transformers as t

    config = t.WhisperConfig(
        vocab_size=320, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    kinds.save(t.WhisperForConditionalGeneration(config), tmp_path)
    with pytest.raises(UnsupportedError, match=r"\(WhisperForConditionalGeneration\) takes input_features, not text"):
        opened(tmp_path)


def test_a_model_that_needs_an_image_says_so_and_answers_about_one(tmp_path: Path) -> None:
    import torch

    model = opened(kinds.blip(tmp_path))
    for ask in (model.generate, model.stream):
        with pytest.raises(UsageError, match="This model answers about an image only"):
            ask("Hello")
    ids = model.model.generate(pixel_values=torch.ones(1, 3, 32, 32), max_new_tokens=3, min_new_tokens=3)
    assert ids.shape[0] == 1


def test_a_model_that_generates_in_its_own_way_is_refused() -> None:
    import transformers as t

    with pytest.raises(UnsupportedError, match="generates by a method of its own, not token by token"):
        check_answers_text("folder", t.DiffusionGemmaForBlockDiffusion)


def test_an_error_of_torch_in_a_model_is_a_sentence(tmp_path: Path) -> None:
    import transformers as t

    config = t.XLNetConfig(vocab_size=320, d_model=128, n_layer=1, n_head=4, d_inner=192)
    model = HLWQModel.from_pretrained(str(kinds.save(t.XLNetLMHeadModel(config), tmp_path)), dtype="bfloat16")
    with pytest.raises(UnsupportedError, match=r"XLNetLMHeadModel cannot answer this: .*BFloat16"):
        model.generate("Hello", max_new_tokens=2)


def custom_code(folder: Path, **settings: Any) -> Path:
    """A model of a type that only its own code knows; the code leaves a file behind when it runs."""
    kinds.llama(folder)
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    auto_map = {"AutoConfig": "code.MyConfig", "AutoModelForCausalLM": "code.MyModel"}
    change(
        folder, "config.json", **{"model_type": "my_llm", "architectures": ["MyModel"], "auto_map": auto_map} | settings
    )
    return folder


@pytest.mark.parametrize("model_type", ["my_llm", "llama"])
def test_custom_code_is_refused_and_neither_run_nor_asked_for(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unread:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"stdin.{name} was used")

    custom_code(tmp_path, model_type=model_type)
    monkeypatch.setattr(sys, "stdin", Unread())
    with pytest.raises(UnsupportedError, match="needs custom code, and hlwq never runs a checkpoint's own code"):
        opened(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert capsys.readouterr().out == ""


def test_custom_code_of_a_model_that_transformers_knows_is_not_needed(tmp_path: Path) -> None:
    custom_code(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"])
    assert opened(tmp_path).generate("Hi", max_new_tokens=2) is not None
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_with_custom_code_alone_is_refused(tmp_path: Path) -> None:
    kinds.llama(tmp_path)
    change(tmp_path, "config.json", model_type="arcee", architectures=None)
    change(
        tmp_path, "tokenizer_config.json", tokenizer_class="MyTokenizer", auto_map={"AutoTokenizer": ["code.My", None]}
    )
    with pytest.raises(UnsupportedError, match=r"The tokenizer of .* never runs a checkpoint's own code"):
        load_processor(str(tmp_path))


@pytest.mark.parametrize("files", [(), ("preprocessor_config.json",)])
def test_a_model_that_sees_answers_text_without_a_usable_processor(files: tuple[str, ...], tmp_path: Path) -> None:
    kinds.vision(tmp_path)
    for name in files:  # as the Hub has it: its video processor needs torchvision
        change(
            tmp_path, name, image_processor_type="Qwen2VLImageProcessor", processor_class="Qwen2_5_VLProcessor",
            patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=3136, max_pixels=12845056,
        )  # fmt: skip
    model = opened(tmp_path)
    found = model.generate("Hello", max_new_tokens=4)
    assert found
    assert found == "".join(model.stream("Hello", max_new_tokens=4))
    assert model.supports_images == (bool(files) and find_spec("torchvision") is not None)
    if model.supports_images:
        assert model.processor.image_processor.merge_size == 2
        return
    missing = "torchvision is not installed" if files else "it has no preprocessor_config.json"
    for ask in (model.generate, model.stream):
        with pytest.raises(UsageError, match=f"images of this model cannot be read: {missing}"):
            ask("What is this?", [object()])  # type: ignore[list-item]


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


def test_a_template_that_refuses_is_an_error_with_its_own_sentence(tmp_path: Path) -> None:
    kinds.llama(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('Conversation roles must alternate') }}")
    model = opened(tmp_path)
    assert model.has_chat_template
    for ask in (model.generate, model.stream):
        with pytest.raises(UsageError, match="refuses the conversation: Conversation roles must alternate"):
            ask("Hello")
    assert model.generate("Hello", chat=False, max_new_tokens=2) is not None


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{% for %}", "{{ messages + 1 }}", "{{ nothing.at.all }}"])
def test_a_template_that_fails_is_a_sentence(template: str, tmp_path: Path) -> None:
    kinds.llama(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(UnsupportedError, match="The chat template of this model fails: "):
        opened(tmp_path).generate("Hello")


def test_named_templates_without_a_default_are_no_chat_template(tmp_path: Path) -> None:
    kinds.llama(tmp_path)
    plain = opened(tmp_path).generate("Hello", max_new_tokens=4)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    model = opened(tmp_path)
    assert not model.has_chat_template
    assert model.generate("Hello", max_new_tokens=4) == plain
    with pytest.raises(UsageError, match="needs a chat template"):
        model.generate("Hello", history=[Turn("user", "Hi")])
    with pytest.raises(UsageError, match="has no chat template"):
        model.generate("Hello", chat=True)


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


def test_an_invalid_config_is_a_sentence(tmp_path: Path) -> None:
    change(kinds.llama(tmp_path), "config.json", hidden_size="wide")
    with pytest.raises(CorruptError, match=r"config\.json of .* is not valid: "):
        opened(tmp_path)
