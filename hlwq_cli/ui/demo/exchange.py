"""What a conversation consists of: settings, prompts and answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError

MAX_SYSTEM_CHARACTERS = 50_000
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Settings:
    """Sampling settings of an answer; see `HLWQModel.generate`.

    Raises:
        UsageError: the system prompt is too long, or a number is out of range.
    """

    system: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        if len(self.system) > MAX_SYSTEM_CHARACTERS:
            raise UsageError(
                f"The system prompt has {len(self.system):,} characters.", f"The maximum is {MAX_SYSTEM_CHARACTERS:,}."
            )
        if not (math.isfinite(self.temperature) and math.isfinite(self.top_p)):
            raise UsageError("Temperature and top-p must be numbers.", "Set them again.")
        if self.seed is not None and self.seed > _MAX_SEED:
            raise UsageError(f"The seed is above {_MAX_SEED:,}.", "Use a smaller one.")


@dataclass
class Reply:
    """One model's answer so far.

    Attributes:
        text: the text so far.
        tokens: number of tokens of the answer.
        tokens_per_second: decode speed, without the first token.
        memory: bytes held at the last token.
        ahead: number of requests before this one, while it waits.
        end: "" until it ends; then "done", "stopped", "full" (it reached the maximum length) or "failed".
        problem: why it failed.
    """

    text: str = ""
    tokens: int = 0
    tokens_per_second: float | None = None
    memory: int = 0
    ahead: int = 0
    end: str = ""
    problem: str = ""


@dataclass
class Exchange:
    """A prompt, and the answer of each model.

    Attributes:
        text: what was asked.
        images: files of the pictures, shrunk; each is alone in its folder.
        pixels: of all pictures.
        replies: the answer of each model.
    """

    text: str
    images: tuple[Path, ...]
    pixels: int
    replies: list[Reply]

    @property
    def characters(self) -> int:
        """Characters of the prompt and of the longest answer."""
        return len(self.text) + max((len(r.text) for r in self.replies), default=0)
