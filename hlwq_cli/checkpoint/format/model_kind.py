"""What a model is for: the Hub's name of its task, and the class of transformers that loads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_AUTO_CLASSES = (
    ("IMAGE_TEXT_TO_TEXT", "ImageTextToText", "image-text-to-text"),
    ("SPEECH_SEQ_2_SEQ", "SpeechSeq2Seq", "automatic-speech-recognition"),
    ("CAUSAL_LM", "CausalLM", "text-generation"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "Seq2SeqLM", "text2text-generation"),
    ("MASKED_LM", "MaskedLM", "fill-mask"),
    ("SEQUENCE_CLASSIFICATION", "SequenceClassification", "text-classification"),
    ("TOKEN_CLASSIFICATION", "TokenClassification", "token-classification"),
    ("QUESTION_ANSWERING", "QuestionAnswering", "question-answering"),
    ("TABLE_QUESTION_ANSWERING", "TableQuestionAnswering", "table-question-answering"),
    ("DOCUMENT_QUESTION_ANSWERING", "DocumentQuestionAnswering", "document-question-answering"),
    ("VISUAL_QUESTION_ANSWERING", "VisualQuestionAnswering", "visual-question-answering"),
    ("MULTIPLE_CHOICE", "MultipleChoice", "multiple-choice"),
    ("IMAGE_CLASSIFICATION", "ImageClassification", "image-classification"),
    ("ZERO_SHOT_IMAGE_CLASSIFICATION", "ZeroShotImageClassification", "zero-shot-image-classification"),
    ("OBJECT_DETECTION", "ObjectDetection", "object-detection"),
    ("ZERO_SHOT_OBJECT_DETECTION", "ZeroShotObjectDetection", "zero-shot-object-detection"),
    ("SEMANTIC_SEGMENTATION", "SemanticSegmentation", "image-segmentation"),
    ("UNIVERSAL_SEGMENTATION", "UniversalSegmentation", "image-segmentation"),
    ("DEPTH_ESTIMATION", "DepthEstimation", "depth-estimation"),
    ("MASK_GENERATION", "MaskGeneration", "mask-generation"),
    ("VIDEO_CLASSIFICATION", "VideoClassification", "video-classification"),
    ("AUDIO_CLASSIFICATION", "AudioClassification", "audio-classification"),
    ("CTC", "CTC", "automatic-speech-recognition"),
    ("TEXT_TO_WAVEFORM", "TextToWaveform", "text-to-speech"),
    ("TEXT_TO_SPECTROGRAM", "TextToSpectrogram", "text-to-speech"),
    ("PRETRAINING", "PreTraining", "feature-extraction"),
    ("IMAGE", "", "image-feature-extraction"),
    ("", "", "feature-extraction"),
    ("TEXT_ENCODING", "TextEncoding", "feature-extraction"),
)
"""transformers' tables of classes, the auto classes that read them, and the Hub's task, the most fitting first."""
_SUFFIXES = {"ForCausalLM": "CausalLM", "LMHeadModel": "CausalLM", "ForMaskedLM": "MaskedLM"}
_TRANSLATORS = frozenset({"marian", "fsmt", "m2m_100", "nllb-moe", "seamless_m4t", "seamless_m4t_v2"})


class ModelKind(NamedTuple):
    """What a model is for.

    Attributes:
        pipeline_tag: the Hub's name of its task.
        loader: the class of transformers that loads it: an auto class, or its own where no auto class does.
    """

    pipeline_tag: str
    loader: str


def model_kind(config: Mapping[str, Any]) -> ModelKind:
    """Return what a model is for, by the class that its config.json names and transformers' tables of auto classes.

    A model with images that generates is known by its config alone: transformers, which takes seconds to import, is
    not asked.
    """
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    if "vision_config" in config and name.endswith(("ForConditionalGeneration", "ForImageTextToText")):
        return ModelKind("image-text-to-text", "AutoModelForImageTextToText")
    model_type = str(config.get("model_type", ""))
    found = next(_listed(name, model_type), None)
    if found is None:
        return _by_suffix(name)
    if found.pipeline_tag == "text2text-generation" and model_type in _TRANSLATORS:
        return found._replace(pipeline_tag="translation")
    if found.pipeline_tag == "text2text-generation" and "audio_config" in config:
        return found._replace(pipeline_tag="audio-text-to-text")
    return found


def _listed(name: str, model_type: str) -> Iterator[ModelKind]:
    """Yield the kinds of the auto classes that list a class; a class that they list for another type loads itself."""
    try:
        from transformers.models.auto import modeling_auto
    except ImportError:
        return
    for table, suffix, tag in _AUTO_CLASSES:
        mapping = f"MODEL_FOR_{table}_MAPPING_NAMES" if table else "MODEL_MAPPING_NAMES"
        types: Mapping[str, Any] = getattr(modeling_auto, mapping, {})
        auto_class = f"AutoModelFor{suffix}" if suffix else "AutoModel"
        if name in _classes(types.get(model_type)):
            yield ModelKind(tag, auto_class)
        elif any(name in _classes(entry) for entry in types.values()):
            yield ModelKind(tag, name)


def _classes(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return tuple(entry) if isinstance(entry, list | tuple) else (entry,)


def _by_suffix(name: str) -> ModelKind:
    """Return the kind of a class that transformers lists nowhere, or does not have."""
    tags = {suffix: tag for _, suffix, tag in _AUTO_CLASSES}
    for end, suffix in _SUFFIXES.items():
        if name.endswith(end):
            return ModelKind(tags[suffix], f"AutoModelFor{suffix}")
    return ModelKind("feature-extraction", "AutoModel")
