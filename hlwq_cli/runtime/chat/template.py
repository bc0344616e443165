"""A model's chat template: whether there is one, and conversations written with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import HlwqError, UnsupportedError, UsageError
from .conversation import Turn, messages

if TYPE_CHECKING:
    from .template_process import TemplateProcess


def template_owner(processor: Any) -> Any:
    """Return what has a default chat template: the processor or its tokenizer; None if neither has."""
    for owner in (processor, getattr(processor, "tokenizer", None)):
        if _default_template(owner):
            return owner
    return None


def as_chat(
    processor: Any,
    turns: Sequence[Turn],
    system: str | None,
    supports_images: bool,
    process: TemplateProcess | None = None,
) -> str:
    """Return a conversation as the prompt of its next turn.

    Args:
        processor: a processor or tokenizer.
        turns: the conversation.
        system: a system prompt.
        supports_images: whether the template takes each message in parts.
        process: where the template runs; by default in this process, without limits.

    Raises:
        UsageError: there is no chat template, or it refuses the conversation.
        UnsupportedError: the template fails, or exceeds a limit of `process`.
    """
    owner = template_owner(processor)
    if owner is None:
        raise UsageError("This model has no chat template.", "Use chat=False, which continues the prompt as it is.")
    conversation = messages(turns, system, supports_images)
    if process is not None:
        tokenizer = getattr(owner, "tokenizer", owner)
        return process.render(_default_template(owner), conversation, tokenizer.special_tokens_map)
    try:
        written: str = owner.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program, and may fail in any way
        raise refusal(type(error).__name__, str(error)) from error
    return written


def refusal(kind: str, said: str) -> HlwqError:
    """Return the error for what a template raised: the name of the exception's class, and its text."""
    said = " ".join(said.split()).rstrip(".") or kind
    if kind == "TemplateError":  # of jinja2: what a template raises by raise_exception
        return UsageError(
            f"The chat template of this model refuses the conversation: {said}.",
            "Change the conversation, or use chat=False, which continues the prompt as it is.",
        )
    return UnsupportedError(
        f"The chat template of this model fails: {said}.", "Use chat=False, which continues the prompt as it is."
    )


def _default_template(owner: Any) -> Any:
    template = getattr(owner, "chat_template", None)
    return template.get("default") if isinstance(template, dict) else template
