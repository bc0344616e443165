"""Checkpoints as transformers models: the quantizer plugin, strict loading, processors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .load import check_loadable, load_model, load_processor, model_class, supports_images
    from .quantizer import HLWQConfig, HLWQQuantizer, execution, offloaded_experts
    from .replace import module_names, replace_modules

__all__ = [
    "HLWQConfig",
    "HLWQQuantizer",
    "check_loadable",
    "execution",
    "load_model",
    "load_processor",
    "model_class",
    "module_names",
    "offloaded_experts",
    "replace_modules",
    "supports_images",
]
__getattr__ = lazy_names(
    __name__,
    {
        "load": (
            "check_loadable",
            "load_model",
            "load_processor",
            "model_class",
            "supports_images",
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
