"""Conversations, and the text that answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .conversation import Turn
    from .template_process import TemplateProcess
    from .text_stream import TextStream

__all__ = [
    "TemplateProcess",
    "TextStream",
    "Turn",
]
__getattr__ = lazy_names(
    __name__,
    {
        "conversation": ("Turn",),
        "template_process": ("TemplateProcess",),
        "text_stream": ("TextStream",),
    },
)
