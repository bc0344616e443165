"""Conversations, and the text that answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .conversation import Turn
    from .text_stream import TextStream

__all__ = [
    "TextStream",
    "Turn",
]
__getattr__ = lazy_names(
    __name__,
    {
        "conversation": ("Turn",),
        "text_stream": ("TextStream",),
    },
)
