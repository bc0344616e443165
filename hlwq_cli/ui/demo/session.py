"""One visitor's conversation with one or two models, kept on the server and not shared with other visitors."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import HlwqError, UsageError
from ...runtime import HLWQModel
from ...runtime.chat import TextStream, Turn
from ...runtime.offload import memory_held
from .images import MAX_IMAGES, open_image
from .request_queue import RequestQueue

MAX_CHARACTERS = 1_000_000
_POLL_SECONDS = 0.5
_STOP_SECONDS = 10


@dataclass(frozen=True)
class Settings:
    """Sampling settings of an answer; see `HLWQModel.generate`."""

    system: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int | None = None


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
    """A prompt, and the answer of each model."""

    text: str
    images: tuple[Path, ...]
    replies: list[Reply]


@dataclass
class Session:
    """A conversation. Its methods may run in any thread; at most one `answer` runs at a time.

    Attributes:
        exchanges: prompts and answers, the oldest first.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _answering: threading.Lock = field(default_factory=threading.Lock)
    _current: TextStream | None = None

    def ask(self, text: str, images: Sequence[Path], models: int) -> None:
        """Add a prompt, to be answered next.

        Raises:
            UsageError: it is empty or too long, another answer is in progress, or an image cannot be opened.
        """
        self._begin()
        if not text.strip() and not images:
            raise UsageError("The message is empty.", "Write something first.")
        if len(text) > MAX_CHARACTERS:
            raise UsageError(f"The message has {len(text):,} characters.", f"The maximum is {MAX_CHARACTERS:,}.")
        if len(images) > MAX_IMAGES:
            raise UsageError(f"The message has {len(images)} pictures.", f"The maximum is {MAX_IMAGES}.")
        for path in images:
            open_image(path)
        self.exchanges.append(Exchange(text, tuple(images), [Reply() for _ in range(models)]))

    def retry(self) -> None:
        """Discard the last answer, so that the prompt is answered again.

        Raises:
            UsageError: there is no answer, or it is in progress.
        """
        self._begin()
        if not self.exchanges:
            raise UsageError("There is no answer to try again.", "Write something first.")
        last = self.exchanges[-1]
        last.replies = [Reply() for _ in last.replies]

    def stop(self) -> None:
        """Stop the answer that is in progress or waiting, at the model's next token."""
        self._stopped.set()
        if self._current is not None:
            self._current.cancel()
        if not self._answering.locked():
            self._end()

    def fail(self, problem: str) -> None:
        """End the pending answers as failed, with the reason."""
        for reply in self.exchanges[-1].replies if self.exchanges else ():
            if not reply.end:
                reply.end, reply.problem = "failed", problem

    def clear(self) -> None:
        """Stop, and discard the conversation."""
        self.stop()
        self.exchanges = []

    def answer(self, models: Sequence[HLWQModel], queue: RequestQueue, settings: Settings) -> Iterator[None]:
        """Answer the last prompt with each model in turn; yield whenever there is something new to show.

        Closing the iterator stops the model and lets the next request in the queue use it.
        """
        if not self.exchanges or self.exchanges[-1].replies[0].end or not self._answering.acquire(blocking=False):
            return
        exchange, earlier = self.exchanges[-1], self.exchanges[:-1]
        try:
            with queue.ticket() as ticket:
                while not self._stopped.is_set() and not ticket.wait(_POLL_SECONDS):
                    exchange.replies[0].ahead = ticket.ahead
                    yield
                for i, model in enumerate(models):
                    yield from self._reply(model, exchange, _turns(earlier, i), exchange.replies[i], settings)
        finally:
            self._end()
            self._answering.release()

    def _reply(
        self, model: HLWQModel, exchange: Exchange, history: list[Turn], reply: Reply, settings: Settings
    ) -> Iterator[None]:
        reply.ahead = 0
        if self._stopped.is_set():
            reply.end = "stopped"
            yield
            return
        try:
            answer = self._start(model, exchange, history, settings)
            try:
                for piece in answer:
                    _count(reply, answer, piece, model)
                    yield
            finally:
                self._current = None
                answer.close()
            _count(reply, answer, "", model)
            full = reply.tokens >= settings.max_new_tokens
            reply.end = "stopped" if self._stopped.is_set() else "full" if full else "done"
        except HlwqError as error:
            reply.end, reply.problem = "failed", str(error)
        except Exception as error:
            if os.environ.get("HLWQ_DEBUG") == "1":
                traceback.print_exc(file=sys.stderr)
            reply.end, reply.problem = "failed", f"{type(error).__name__}: {error}"
        yield

    def _start(self, model: HLWQModel, exchange: Exchange, history: list[Turn], settings: Settings) -> TextStream:
        answer = model.stream(
            exchange.text,
            [open_image(p) for p in exchange.images] or None,
            history=history if model.has_chat_template else (),
            system=settings.system.strip() or None,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            max_new_tokens=settings.max_new_tokens,
        )
        self._current = answer
        if self._stopped.is_set():  # stop() was called between the check and the start
            answer.cancel()
        return answer

    def _begin(self) -> None:
        """Check that no answer is in progress; wait for one that was stopped to end."""
        if not self._answering.acquire(timeout=_STOP_SECONDS if self._stopped.is_set() else 0):
            raise UsageError("An answer is in progress.", "Wait for it, or stop it.")
        self._answering.release()
        if self.exchanges and not self.exchanges[-1].replies[-1].end:
            raise UsageError("An answer is pending.", "Wait for it, or stop it.")
        self._stopped.clear()

    def _end(self) -> None:
        """Mark all answers that have not ended as stopped."""
        for reply in self.exchanges[-1].replies if self.exchanges else ():
            reply.end = reply.end or "stopped"


def _count(reply: Reply, answer: TextStream, piece: str, model: HLWQModel) -> None:
    reply.text += piece
    reply.tokens, reply.tokens_per_second = answer.tokens, answer.tokens_per_second
    reply.memory = memory_held(model.model.device)


def _turns(exchanges: Sequence[Exchange], model: int) -> list[Turn]:
    """Return one model's conversation as turns, without the prompts that it did not answer."""
    turns = []
    for exchange in exchanges:
        said = exchange.replies[model].text
        if said:
            turns.append(Turn("user", exchange.text, [open_image(p) for p in exchange.images]))
            turns.append(Turn("assistant", said))
    return turns
