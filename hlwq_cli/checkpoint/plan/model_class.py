"""The model class of a checkpoint, built without memory on the meta device."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..io import model_config


class BuiltModel(NamedTuple):
    """A model on the meta device, or why there is none."""

    model: Any
    reason: str = ""


def build_model(config: Mapping[str, Any]) -> BuiltModel:
    """Build the transformers class that a config.json names in `architectures`.

    A checkpoint's own Python code is never run.
    """
    names = config.get("architectures")
    if "model_type" not in config or not isinstance(names, list) or not names or not isinstance(names[0], str):
        return BuiltModel(None, "its config.json names no class")
    try:
        import transformers
    except ImportError:
        return BuiltModel(None, "transformers is not installed")
    model_class = getattr(transformers, names[0], None) if names[0].isidentifier() else None
    if not inspect.isclass(model_class) or not issubclass(model_class, transformers.PreTrainedModel):
        return BuiltModel(None, f"transformers has no {names[0]}")
    import torch

    try:
        settings = model_config(config)
        with torch.device("meta"):
            return BuiltModel(model_class(settings))
    except Exception as error:  # whatever a class raises for a configuration that it does not accept
        return BuiltModel(None, f"{names[0]} cannot be built: {type(error).__name__}")
