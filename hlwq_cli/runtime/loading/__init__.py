"""Checkpoints as transformers models: the quantizer plugin, strict loading, processors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .classes import check_answers_text, inputs_beside_text, model_class
    from .config import read_config, supports_images, text_config
    from .context import Context, context_for, context_of
    from .load import check_loadable, load_model
    from .processor import bos_token, load_processor
    from .quantizer import HLWQConfig, HLWQQuantizer, execution, offloaded_experts
    from .replace import module_names, replace_modules

__all__ = [
    "Context",
    "HLWQConfig",
    "HLWQQuantizer",
    "bos_token",
    "check_answers_text",
    "check_loadable",
    "context_for",
    "context_of",
    "execution",
    "inputs_beside_text",
    "load_model",
    "load_processor",
    "model_class",
    "module_names",
    "offloaded_experts",
    "read_config",
    "replace_modules",
    "supports_images",
    "text_config",
]
__getattr__ = lazy_names(
    __name__,
    {
        "classes": (
            "check_answers_text",
            "inputs_beside_text",
            "model_class",
        ),
        "config": (
            "read_config",
            "supports_images",
            "text_config",
        ),
        "context": (
            "Context",
            "context_for",
            "context_of",
        ),
        "load": (
            "check_loadable",
            "load_model",
        ),
        "processor": (
            "bos_token",
            "load_processor",
        ),
        "quantizer": (
            "HLWQConfig",
            "HLWQQuantizer",
            "execution",
            "offloaded_experts",
        ),
        "replace": (
            "module_names",
            "replace_modules",
        ),
    },
)
