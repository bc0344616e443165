"""A model's chat template: whether there is one, and conversations written with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import HlwqError, UnsupportedError, UsageError
from .conversation import Turn, messages


def template_owner(processor: Any) -> Any:
    """Return what has a default chat template: the processor or its tokenizer; None if neither has."""
    for owner in (processor, getattr(processor, "tokenizer", None)):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return owner
    return None


def as_chat(processor: Any, turns: Sequence[Turn], system: str | None, supports_images: bool) -> str:
    """Return a conversation as the prompt of its next turn.

    Args:
        processor: a processor or tokenizer.
        turns: the conversation.
        system: a system prompt.
        supports_images: whether the template takes each message in parts.

    Raises:
        UsageError: there is no chat template, or it refuses the conversation.
        UnsupportedError: the template fails.
    """
    owner = template_owner(processor)
    if owner is None:
        raise UsageError("This model has no chat template.", "Use chat=False, which continues the prompt as it is.")
    try:
        written: str = owner.apply_chat_template(
            messages(turns, system, supports_images), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program, and may fail in any way
        raise _refusal(error) from error
    return written


def _refusal(error: Exception) -> HlwqError:
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if type(error).__name__ == "TemplateError":  # of jinja2: what a template raises by raise_exception
        return UsageError(
            f"The chat template of this model refuses the conversation: {said}.",
            "Change the conversation, or use chat=False, which continues the prompt as it is.",
        )
    return UnsupportedError(
        f"The chat template of this model fails: {said}.", "Use chat=False, which continues the prompt as it is."
    )
