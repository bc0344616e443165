"""The transformers class that a checkpoint is loaded with, and whether it answers text with text."""

from __future__ import annotations

import inspect
from typing import Any

from ...errors import UnsupportedError
from .config import architecture, supports_images, text_config

_KINDS = {
    "ForMaskedLM": "a masked language model",
    "ForPreTraining": "a model for pretraining",
    "ForSequenceClassification": "a classifier",
    "ForTokenClassification": "a classifier of tokens",
    "ForImageClassification": "a classifier of images",
    "ForAudioClassification": "a classifier of audio",
    "ForQuestionAnswering": "a model that finds answers in a text",
    "ForMultipleChoice": "a model for multiple choice",
    "EncoderModel": "an encoder without a head",
    "Model": "a model without a head",
}
"""What a class is, by the end of its name."""


def model_class(config: Any) -> Any:
    """Return the transformers class of a checkpoint: the one that its config names, else the one of its model type."""
    import transformers

    name = architecture(config)
    named = getattr(transformers, name, None) if name.isidentifier() else None
    if inspect.isclass(named) and issubclass(named, transformers.PreTrainedModel) and _fits(named, config):
        return named
    for mapping in _mappings(config):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise UnsupportedError(
        f"transformers has no model class for {type(config).__name__}.", "Use a checkpoint of another model."
    )


def _fits(named: Any, config: Any) -> bool:
    """Return whether a class takes a config, or the part of the config for text."""
    wanted = named.config_class
    return wanted is None or isinstance(config, wanted) or isinstance(text_config(config), wanted)


def _mappings(config: Any) -> list[Any]:
    """Return transformers' classes by type of config, the most fitting kind first."""
    import transformers as t

    causal, masked = t.MODEL_FOR_CAUSAL_LM_MAPPING, t.MODEL_FOR_MASKED_LM_MAPPING
    rest = [causal, t.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, masked, t.MODEL_MAPPING]
    if config.is_encoder_decoder:
        return [t.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, *rest]
    if supports_images(config):
        return [t.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, *rest]
    if type(config) in masked and not getattr(config, "is_decoder", False):
        return [masked, *rest]
    return rest


def check_answers_text(path: str, model_class: Any) -> None:
    """Raise UnsupportedError if a class does not answer text with text: an encoder, a classifier, a speech model."""
    name = model_class.__name__
    hint = f"Plain transformers loads it after `import hlwq_cli`: `{name}.from_pretrained({path!r})`."
    if not model_class.can_generate():
        raise UnsupportedError(f"{path} is {_kind(model_class)} ({name}), which does not generate text.", hint)
    if not hasattr(model_class, "prepare_inputs_for_generation"):
        raise UnsupportedError(f"{path} ({name}) generates by a method of its own, not token by token.", hint)
    gives = getattr(model_class, "output_modalities", ("text",))
    if "text" not in gives:
        raise UnsupportedError(f"{path} ({name}) generates {_listed(gives)}, not text.", hint)
    if not _takes_text(model_class):
        raise UnsupportedError(f"{path} ({name}) takes {model_class.main_input_name}, not text.", hint)


def inputs_beside_text(model_class: Any, method: str = "forward") -> tuple[str, ...]:
    """Return the arguments other than text that a method of a class cannot do without, such as `pixel_values`."""
    parameters = list(inspect.signature(getattr(model_class, method)).parameters.values())[1:]
    named = (p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)
    return tuple(name for name in named if name not in ("input_ids", "inputs"))


def _takes_text(model_class: Any) -> bool:
    takes_ids = "input_ids" in inspect.signature(model_class.forward).parameters
    return model_class.main_input_name == "input_ids" or (takes_ids and "text" in model_class.input_modalities)


def _kind(model_class: Any) -> str:
    import transformers

    name = model_class.__name__
    if name.endswith("Model") and model_class.config_class in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        return _KINDS["EncoderModel"]
    return next((kind for end, kind in _KINDS.items() if name.endswith(end)), "a model without a language model head")


def _listed(modalities: Any) -> str:
    return modalities if isinstance(modalities, str) else " and ".join(modalities)
