"""Checkpoints as models: loading, coded modules, the key/value cache, offloaded experts, decoding and chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from .chat.conversation import Turn
    from .chat.text_stream import TextStream
    from .loading.load import check_loadable, load_model
    from .loading.processor import load_processor
    from .model import HLWQModel, PolarQuantModel

__all__ = [
    "HLWQModel",
    "PolarQuantModel",
    "TextStream",
    "Turn",
    "check_loadable",
    "load_model",
    "load_processor",
]
__getattr__ = lazy_names(
    __name__,
    {
        "model": (
            "HLWQModel",
            "PolarQuantModel",
        ),
        "loading.load": (
            "check_loadable",
            "load_model",
        ),
        "loading.processor": ("load_processor",),
        "chat.conversation": ("Turn",),
        "chat.text_stream": ("TextStream",),
    },
)
