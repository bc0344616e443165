"""Event handlers of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ...errors import HlwqError, UsageError
from .exchange import Settings
from .render import messages
from .session import Room, Session

SEND, STOP = "Send", "Stop"
_MAX_DIGITS = 20  # of a seed


@dataclass(frozen=True)
class Parts:
    """The components of the page that have event handlers.

    Attributes:
        state: each visitor's own `Session`, None until the first message.
        chats: one chat for each model.
        box: text box for messages.
        again: button that answers the last message again.
        clear: button that clears the conversation.
        settings: inputs in the order of `Settings`.
    """

    state: gr.State
    chats: list[gr.Chatbot]
    box: gr.Textbox | gr.MultimodalTextbox
    again: gr.Button
    clear: gr.Button
    settings: list[Any]


def connect(parts: Parts, room: Room) -> None:
    """Attach the event handlers.

    Events go through Gradio's queue, as only queued events can show errors on the page. It has no limit here;
    `RequestQueue` makes visitors wait for the model.
    """
    box, chats = parts.box, parts.chats
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    queued, at_once = {**quiet, "concurrency_limit": None}, {**quiet, "queue": False}

    def view(session: Session | None) -> list[Any]:
        return [messages(session, i) for i in range(len(chats))]

    def ask(session: Session | None, message: Any, *values: Any) -> list[Any]:
        session = session or Session()
        text, images = _read(message)

        def action() -> None:
            _settings(*values)  # refused before the message is part of the conversation
            session.ask(text, images, room)

        _show_errors(action)
        return [session, _switched(box, busy=True, value=_empty(box)), *view(session)]

    def retry(session: Session | None, *values: Any) -> list[Any]:
        session = session or Session()

        def action() -> None:
            _settings(*values)
            session.retry()

        _show_errors(action)
        return [session, _switched(box, busy=True), *view(session)]

    def answer(session: Session, *values: Any) -> Iterator[Any]:
        try:
            for _ in session.answer(room, _settings(*values)):
                yield _outputs(view(session))
        except HlwqError as error:
            session.fail(str(error))
        yield _outputs(view(session))

    def stop(session: Session | None) -> None:
        if session is not None:
            session.stop()

    def clear(session: Session | None) -> Any:
        if session is not None:
            session.clear()
        return _outputs(view(session))

    outputs = [parts.state, box, *chats]
    for event in (
        box.submit(ask, [parts.state, box, *parts.settings], outputs, **queued),
        parts.again.click(retry, [parts.state, *parts.settings], outputs, **queued),
    ):
        given = event.success(answer, [parts.state, *parts.settings], chats, **queued)
        given.then(lambda: _switched(box, busy=False), None, [box], **at_once)
    box.stop(stop, [parts.state], None, **at_once)
    for cleared in (parts.clear.click, *(chat.clear for chat in chats)):
        cleared(clear, [parts.state], chats, **at_once)


def _settings(
    system: str | None, temperature: float, top_p: float, max_new_tokens: float, seed: str | None
) -> Settings:
    digits = (seed or "").strip()
    if digits and not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS):
        raise UsageError(f"The seed {digits[:40]!r} is not a whole number.", "Leave it empty for a random seed.")
    try:
        length = int(max_new_tokens)
        return Settings(system or "", float(temperature), float(top_p), length, int(digits) if digits else None)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError("A setting is not a number.", "Set it again.") from error


def _show_errors(action: Callable[[], None]) -> None:
    """Run `action`; show an HlwqError on the page, and change nothing else."""
    try:
        action()
    except HlwqError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _outputs(values: list[Any]) -> Any:
    """Return the values of several outputs, or the only value itself, as Gradio expects."""
    return values if len(values) > 1 else values[0]


def _read(message: Any) -> tuple[str, list[Path]]:
    if isinstance(message, dict):
        return message.get("text") or "", [Path(f) for f in message.get("files") or ()]
    return message or "", []


def _empty(box: Any) -> Any:
    return {"text": "", "files": []} if isinstance(box, gr.MultimodalTextbox) else ""


def _switched(box: Any, busy: bool, **changes: Any) -> Any:
    """Update the box: its button sends, or stops the answer while the model is busy."""
    return type(box)(submit_btn=False if busy else SEND, stop_btn=STOP if busy else False, **changes)
