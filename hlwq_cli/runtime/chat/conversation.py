"""A conversation, in the form that a chat template takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: who wrote it.
        text: what was written.
        images: images that come before the text.
    """

    role: Literal["user", "assistant"]
    text: str
    images: Sequence[Image] = ()


def messages(turns: Sequence[Turn], system: str | None, supports_images: bool) -> list[dict[str, Any]]:
    """Return turns as messages of a chat template; a model that supports images takes each message in parts."""
    found: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        content: Any = turn.text
        if supports_images:
            content = [{"type": "image"}] * len(turn.images) + [{"type": "text", "text": turn.text}]
        found.append({"role": turn.role, "content": content})
    return found
