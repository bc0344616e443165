"""The task and the loading class on a model card, for each kind of model."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from hlwq_cli.checkpoint.format.model_kind import model_kind

KINDS = [
    ("llama", "LlamaForCausalLM", "text-generation", "AutoModelForCausalLM"),
    ("gpt2", "GPT2LMHeadModel", "text-generation", "AutoModelForCausalLM"),
    ("mamba", "MambaForCausalLM", "text-generation", "AutoModelForCausalLM"),
    ("t5", "T5ForConditionalGeneration", "text2text-generation", "AutoModelForSeq2SeqLM"),
    ("bart", "BartForConditionalGeneration", "text2text-generation", "AutoModelForSeq2SeqLM"),
    ("marian", "MarianMTModel", "translation", "AutoModelForSeq2SeqLM"),
    ("m2m_100", "M2M100ForConditionalGeneration", "translation", "AutoModelForSeq2SeqLM"),
    ("bert", "BertForMaskedLM", "fill-mask", "AutoModelForMaskedLM"),
    ("bert", "BertModel", "feature-extraction", "AutoModel"),
    ("qwen3", "Qwen3Model", "feature-extraction", "AutoModel"),
    ("t5", "T5EncoderModel", "feature-extraction", "AutoModelForTextEncoding"),
    ("roberta", "RobertaForSequenceClassification", "text-classification", "AutoModelForSequenceClassification"),
    ("bert", "BertForTokenClassification", "token-classification", "AutoModelForTokenClassification"),
    ("bert", "BertForQuestionAnswering", "question-answering", "AutoModelForQuestionAnswering"),
    ("blip", "BlipForConditionalGeneration", "image-text-to-text", "AutoModelForImageTextToText"),
    ("git", "GitForCausalLM", "image-text-to-text", "AutoModelForImageTextToText"),
    ("idefics", "IdeficsForVisionText2Text", "image-text-to-text", "AutoModelForImageTextToText"),
    ("vit", "ViTModel", "image-feature-extraction", "AutoModel"),
    ("vit", "ViTForImageClassification", "image-classification", "AutoModelForImageClassification"),
    ("clip", "CLIPModel", "zero-shot-image-classification", "AutoModelForZeroShotImageClassification"),
    ("detr", "DetrForObjectDetection", "object-detection", "AutoModelForObjectDetection"),
    ("whisper", "WhisperForConditionalGeneration", "automatic-speech-recognition", "AutoModelForSpeechSeq2Seq"),
    ("wav2vec2", "Wav2Vec2ForCTC", "automatic-speech-recognition", "AutoModelForCTC"),
    ("vits", "VitsModel", "text-to-speech", "AutoModelForTextToWaveform"),
]


@pytest.mark.parametrize(("model_type", "name", "tag", "loader"), KINDS)
def test_task_and_loading_class_follow_the_class_that_the_config_names(
    model_type: str, name: str, tag: str, loader: str
) -> None:
    assert model_kind({"model_type": model_type, "architectures": [name]}) == (tag, loader)


def test_every_loading_class_loads_the_class_that_the_config_names() -> None:
    import transformers

    for model_type, name, _, loader in KINDS:
        config = transformers.CONFIG_MAPPING[model_type]()
        config.architectures = [name]
        found = getattr(transformers, loader)._model_mapping[type(config)]
        names = [c.__name__ for c in found] if isinstance(found, tuple) else [found.__name__]
        assert name in names, (name, loader)


def test_a_model_of_sound_and_text_is_neither_a_translator_nor_a_plain_text_model() -> None:
    config = {
        "model_type": "qwen2_audio",
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "audio_config": {"model_type": "qwen2_audio_encoder"},
    }
    assert model_kind(config) == ("audio-text-to-text", "AutoModelForSeq2SeqLM")


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        (["NewForCausalLM"], ("text-generation", "AutoModelForCausalLM")),
        (["NewModel"], ("feature-extraction", "AutoModel")),
        ([], ("feature-extraction", "AutoModel")),
        (None, ("feature-extraction", "AutoModel")),
        (["WhisperForCausalLM"], ("text-generation", "AutoModelForCausalLM")),
    ],
)
def test_a_class_that_transformers_does_not_list_is_judged_by_its_name(architectures: Any, expected: Any) -> None:
    assert model_kind({"model_type": "new", "architectures": architectures})[0] == expected[0]


def test_a_class_that_no_auto_class_loads_for_its_type_loads_itself() -> None:
    assert model_kind({"model_type": "llava", "architectures": ["LlamaForCausalLM"]}).loader == "LlamaForCausalLM"


def test_a_model_with_images_needs_no_import_of_transformers() -> None:
    code = (
        "import sys; from hlwq_cli.checkpoint.format.model_kind import model_kind;"
        "kind = model_kind({'model_type': 'gemma4', 'architectures': ['Gemma4ForConditionalGeneration'],"
        " 'vision_config': {}}); print(*kind, 'transformers' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["image-text-to-text", "AutoModelForImageTextToText", "False"]
