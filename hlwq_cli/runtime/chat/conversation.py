"""A conversation, as a chat template takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Turn:
    """What one side said.

    Attributes:
        role: who said it.
        text: what.
        images: pictures that came before the text.
    """

    role: Literal["user", "assistant"]
    text: str
    images: Sequence[Image] = ()


def messages(turns: Sequence[Turn], system: str | None, supports_images: bool) -> list[dict[str, Any]]:
    """Turns as the messages of a chat template; templates of models that see take the parts of a message."""
    found: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        content: Any = turn.text
        if supports_images:
            content = [{"type": "image"}] * len(turn.images) + [{"type": "text", "text": turn.text}]
        found.append({"role": turn.role, "content": content})
    return found
