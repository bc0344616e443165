"""What happens when the parts of the page are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ...errors import HlwqError, UsageError
from ...runtime.model import HLWQModel
from .render import messages
from .request_queue import RequestQueue
from .session import Session, Settings

SEND, STOP = "Send", "Stop"


@dataclass(frozen=True)
class Parts:
    """The parts of the page that do something.

    Attributes:
        state: each person's own `Session`, None until the first message.
        chats: one for each model.
        box: where a message is written.
        again: button that answers anew.
        clear: button that forgets.
        settings: in the order of `Settings`.
    """

    state: gr.State
    chats: list[gr.Chatbot]
    box: gr.Textbox | gr.MultimodalTextbox
    again: gr.Button
    clear: gr.Button
    settings: list[Any]


def connect(parts: Parts, models: Sequence[HLWQModel]) -> None:
    """Tie them together. Gradio's own queue admits everybody; `RequestQueue` decides the order."""
    box, chats, queue = parts.box, parts.chats, RequestQueue()
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    queued, at_once = {**quiet, "concurrency_limit": None}, {**quiet, "queue": False}

    def view(session: Session | None) -> list[Any]:
        return [messages(session, i) for i in range(len(chats))]

    def ask(session: Session | None, message: Any) -> list[Any]:
        session = session or Session()
        text, images = _read(message)
        _show_errors(lambda: session.ask(text, images, len(models)))
        return [session, _switched(box, busy=True, value=_empty(box)), *view(session)]

    def retry(session: Session | None) -> list[Any]:
        session = session or Session()
        _show_errors(session.retry)
        return [session, _switched(box, busy=True), *view(session)]

    def answer(session: Session, *values: Any) -> Iterator[Any]:
        try:
            for _ in session.answer(models, queue, _settings(*values)):
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
        box.submit(ask, [parts.state, box], outputs, **queued),
        parts.again.click(retry, [parts.state], outputs, **queued),
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
    if digits and not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"The seed {digits!r} is no whole number.", "Leave it empty for a random one.")
    return Settings(system or "", temperature, top_p, int(max_new_tokens), int(digits) if digits else None)


def _show_errors(action: Callable[[], None]) -> None:
    """Do it; what cannot be done is told on the page, and nothing else changes."""
    try:
        action()
    except HlwqError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _outputs(values: list[Any]) -> Any:
    """A single output is returned as it is."""
    return values if len(values) > 1 else values[0]


def _read(message: Any) -> tuple[str, list[Path]]:
    if isinstance(message, dict):
        return message.get("text") or "", [Path(f) for f in message.get("files") or ()]
    return message or "", []


def _empty(box: Any) -> Any:
    return {"text": "", "files": []} if isinstance(box, gr.MultimodalTextbox) else ""


def _switched(box: Any, busy: bool, **changes: Any) -> Any:
    """The box with its button to send, or while an answer comes with one to stop."""
    return type(box)(submit_btn=False if busy else SEND, stop_btn=STOP if busy else False, **changes)
