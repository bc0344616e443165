"""The model class of a checkpoint, built without memory on the meta device."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from ...errors import CorruptError, UnsupportedError
from ..io import model_config


class BuiltModel(NamedTuple):
    """A model on the meta device, or why there is none."""

    model: Any
    reason: str = ""


_SPARE_MODULES = 10_000
_MODULES_PER_TENSOR = 20


class _TooManyModulesError(Exception):
    """A model has more modules than the tensors of its checkpoint can fill."""


def build_model(config: Mapping[str, Any], num_tensors: int = 1_000_000) -> BuiltModel:
    """Build the transformers class that a config.json names in `architectures`.

    A checkpoint's own Python code is never run.

    Args:
        config: the content of config.json.
        num_tensors: how many tensors the checkpoint has. A model of far more modules is not built to its end.

    Raises:
        CorruptError: the model has far more modules than the checkpoint has tensors.
        UnsupportedError: transformers has the class and cannot build it here, so it could not load the result either.
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
        with torch.device("meta"), _limited_modules(_MODULES_PER_TENSOR * num_tensors + _SPARE_MODULES):
            return BuiltModel(model_class(_part_for(model_class, settings)))
    except _TooManyModulesError as error:
        raise CorruptError(
            f"{names[0]} with the settings of config.json has far more parts than the {num_tensors:,} tensors fill.",
            "Correct config.json, or fetch the checkpoint again.",
        ) from error
    except ImportError as error:
        raise UnsupportedError(
            f"transformers cannot build {names[0]} here: {_first_sentence(error)}.", "Install what it needs."
        ) from error
    except Exception as error:  # whatever a class raises for a configuration that it does not accept
        raise UnsupportedError(
            f"transformers cannot build {names[0]} from its config.json: {_first_sentence(error)}.",
            "Correct config.json, or use a version of transformers that loads the checkpoint.",
        ) from error


def _part_for(model_class: Any, config: Any) -> Any:
    """Return the configuration that a class takes: the whole, or the text model's, as from_pretrained does."""
    wanted = model_class.config_class
    if wanted is None or isinstance(config, wanted):
        return config
    text = config.get_text_config()
    return text if isinstance(text, wanted) else config


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.split(". ")[0].rstrip(".:") or type(error).__name__


@contextmanager
def _limited_modules(limit: int) -> Iterator[None]:
    """Raise _TooManyModulesError inside this context when more than `limit` modules are put into others."""
    from torch.nn.modules.module import register_module_module_registration_hook

    count = 0

    def check(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise _TooManyModulesError

    hook = register_module_module_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()
