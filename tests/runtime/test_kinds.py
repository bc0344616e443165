"""HLWQModel answers with every kind of model, or refuses it with a sentence that says what it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.errors import CorruptError, UnsupportedError, UsageError
from hlwq_cli.runtime import HLWQModel
from hlwq_cli.runtime.loading import check_answers_text

from . import kinds
from .kinds import by_transformers, change, opened

PROMPT = "translate English to German: Hello"


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


def test_a_model_that_sees_answers_text_without_a_processor(tmp_path: Path) -> None:
    model = opened(kinds.vision(tmp_path))
    found = model.generate("Hello", max_new_tokens=4)
    assert found
    assert found == "".join(model.stream("Hello", max_new_tokens=4))
    assert not model.supports_images
    missing = "images of this model cannot be read: it has no preprocessor_config.json"
    for ask in (model.generate, model.stream):
        with pytest.raises(UsageError, match=missing):
            ask("What is this?", [object()])  # type: ignore[list-item]


QWEN: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor", "patch_size": 14,
    "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 3136, "max_pixels": 12845056,
}  # fmt: skip
"""A preprocessor_config.json as the Hub has it; the video processor of its class needs torchvision."""
WITHOUT_TORCHVISION = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torchvision" else find_spec(name, *rest)
from hlwq_cli.runtime.loading.processor import open_processor
print(open_processor(sys.argv[1]).without_images)
"""


def test_a_model_that_sees_answers_text_with_a_processor_that_this_machine_may_lack(tmp_path: Path) -> None:
    change(kinds.vision(tmp_path), "preprocessor_config.json", **QWEN)
    model = opened(tmp_path)
    assert model.generate("Hello", max_new_tokens=4)
    assert model.supports_images == (find_spec("torchvision") is not None)


def test_the_library_that_a_processor_needs_is_named(tmp_path: Path) -> None:
    change(kinds.vision(tmp_path), "preprocessor_config.json", **QWEN)
    command = [sys.executable, "-c", WITHOUT_TORCHVISION, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.strip() == "torchvision is not installed"


def test_an_invalid_config_is_a_sentence(tmp_path: Path) -> None:
    change(kinds.llama(tmp_path), "config.json", hidden_size="wide")
    with pytest.raises(CorruptError, match=r"config\.json of .* is not valid: "):
        opened(tmp_path)
