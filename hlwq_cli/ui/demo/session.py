"""One visitor's conversation with one or two models, kept on the server and not shared with other visitors."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ...errors import HlwqError, UsageError
from ...runtime import HLWQModel
from ...runtime.chat import TextStream
from ...runtime.offload import memory_held
from .exchange import Exchange, Reply, Settings
from .pictures import MAX_CONVERSATION_PIXELS, MAX_IMAGES, MAX_MESSAGE_PIXELS, keep_shrunk
from .prepare import Prompt, TimeLimit, prepared
from .request_queue import RequestQueue

MAX_CHARACTERS = 1_000_000
"""Characters of a message, and of a conversation with its answers."""
_POLL_SECONDS = 0.5
_STOP_SECONDS = 10


@dataclass(frozen=True)
class Room:
    """What the models of a page take, and where pictures are kept.

    Attributes:
        models: the models that answer.
        folder: a folder for shrunk pictures.
        max_pixels: pixels of a picture that the models see at most.
        limit: on the time that a prompt takes to prepare.
        queue: of the requests that wait for the models.
    """

    models: Sequence[HLWQModel]
    folder: Path
    max_pixels: int
    limit: TimeLimit = field(default_factory=TimeLimit)
    queue: RequestQueue = field(default_factory=RequestQueue)


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

    def ask(self, text: str, images: Sequence[Path], room: Room) -> None:
        """Add a prompt, to be answered next. Its pictures are shrunk and kept in `room.folder`.

        Raises:
            UsageError: it is empty or too long, the conversation gets too long, another answer is in progress, or an
                image cannot be opened.
        """
        self._begin()
        if not text.strip() and not images:
            raise UsageError("The message is empty.", "Write something first.")
        if len(text) > MAX_CHARACTERS:
            raise UsageError(f"The message has {len(text):,} characters.", f"The maximum is {MAX_CHARACTERS:,}.")
        if len(text) + sum(e.characters for e in self.exchanges) > MAX_CHARACTERS:
            raise UsageError(f"The conversation has more than {MAX_CHARACTERS:,} characters.", "Clear it.")
        if len(images) > MAX_IMAGES:
            raise UsageError(f"The message has {len(images)} pictures.", f"The maximum is {MAX_IMAGES}.")
        kept, pixels = self._keep(images, room)
        self.exchanges.append(Exchange(text, kept, pixels, [Reply() for _ in room.models]))

    def _keep(self, images: Sequence[Path], room: Room) -> tuple[tuple[Path, ...], int]:
        kept: list[Path] = []
        pixels, earlier = 0, sum(e.pixels for e in self.exchanges)
        try:
            for path in images:
                file, more = keep_shrunk(path, room.folder, min(room.max_pixels, MAX_MESSAGE_PIXELS // len(images)))
                kept.append(file)
                pixels += more
                if earlier + pixels > MAX_CONVERSATION_PIXELS:
                    limit = MAX_CONVERSATION_PIXELS // 10**6
                    raise UsageError(f"The pictures of the conversation have over {limit} megapixels.", "Clear it.")
        except BaseException:
            _remove(kept)
            raise
        return tuple(kept), pixels

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
        """Stop, and discard the conversation with its pictures."""
        self.stop()
        gone, self.exchanges = self.exchanges, []
        _remove([path for exchange in gone for path in exchange.images])

    def answer(self, room: Room, settings: Settings) -> Iterator[None]:
        """Answer the last prompt with each model in turn; yield whenever there is something new to show.

        The prompt is prepared before it joins the queue, so that neither a long text nor a hostile chat template makes
        others wait. Closing the iterator stops the model and lets the next request in the queue use it.
        """
        if not self.exchanges or self.exchanges[-1].replies[0].end or not self._answering.acquire(blocking=False):
            return
        exchange, earlier = self.exchanges[-1], self.exchanges[:-1]
        try:
            answers = []
            for i, model in enumerate(room.models):
                history = Prompt(exchange, earlier, i)
                with _failures(exchange.replies[i]):
                    answers.append((i, room.limit.run(partial(prepared, model, history, settings))))
            yield
            if not answers:
                return
            with room.queue.ticket() as ticket:
                while not self._stopped.is_set() and not ticket.wait(_POLL_SECONDS):
                    exchange.replies[0].ahead = ticket.ahead
                    yield
                exchange.replies[0].ahead = 0
                for i, answer in answers:
                    yield from self._reply(room.models[i], answer, exchange.replies[i], settings)
        finally:
            self._end()
            self._answering.release()

    def _reply(self, model: HLWQModel, answer: TextStream, reply: Reply, settings: Settings) -> Iterator[None]:
        if self._stopped.is_set():
            reply.end = "stopped"
            yield
            return
        with _failures(reply):
            self._current = answer
            if self._stopped.is_set():  # stop() was called between the check and the start
                answer.cancel()
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
        yield

    def _begin(self) -> None:
        """Check that no answer is in progress; wait for one that was stopped to end."""
        if not self._answering.acquire(timeout=_STOP_SECONDS if self._stopped.is_set() else 0):
            raise UsageError("An answer is in progress.", "Wait for it, or stop it.")
        self._answering.release()
        self._end()  # of a prompt whose answer never started, as its settings were refused
        self._stopped.clear()

    def _end(self) -> None:
        """Mark all answers that have not ended as stopped."""
        for reply in self.exchanges[-1].replies if self.exchanges else ():
            reply.end = reply.end or "stopped"


def _count(reply: Reply, answer: TextStream, piece: str, model: HLWQModel) -> None:
    reply.text += piece
    reply.tokens, reply.tokens_per_second = answer.tokens, answer.tokens_per_second
    reply.memory = memory_held(model.model.device)


@contextmanager
def _failures(reply: Reply) -> Iterator[None]:
    """Enter an exception in the reply as its end."""
    try:
        yield
    except HlwqError as error:
        reply.end, reply.problem = "failed", str(error)
    except Exception as error:
        if os.environ.get("HLWQ_DEBUG") == "1":
            traceback.print_exc(file=sys.stderr)
        reply.end, reply.problem = "failed", f"{type(error).__name__}: {error}"


def _remove(kept: Sequence[Path]) -> None:
    for path in kept:
        shutil.rmtree(path.parent, ignore_errors=True)
