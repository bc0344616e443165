"""Prompts, prepared with a limit on time, so that a hostile checkpoint or message does not stop the server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ...errors import HlwqError
from ...runtime import HLWQModel
from ...runtime.chat import TextStream, Turn
from .exchange import Exchange, Settings
from .pictures import open_picture

T = TypeVar("T")


class TimeLimit:
    """Runs functions in threads and gives up on those that take too long.

    A thread cannot be ended, so at most `at_once` functions run; while all of them are stuck, others are refused.
    """

    def __init__(self, seconds: float = 30.0, at_once: int = 2) -> None:
        self.seconds = seconds
        self._free = threading.BoundedSemaphore(at_once)

    def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, or raise its exception.

        Raises:
            HlwqError: it takes longer than the limit, or others that do are in its way.
        """
        if not self._free.acquire(timeout=self.seconds):
            raise HlwqError("The server is busy with other messages.", "Try again later.")
        results: list[T] = []
        failures: list[BaseException] = []

        def worker() -> None:
            try:
                results.append(work())
            except BaseException as error:
                failures.append(error)
            finally:
                self._free.release()

        thread = threading.Thread(target=worker, name="prepare a prompt", daemon=True)
        thread.start()
        thread.join(self.seconds)
        if failures:
            raise failures[0]
        if not results:
            raise HlwqError(f"The message takes more than {self.seconds:g} seconds to prepare.", "Shorten it.")
        return results[0]


@dataclass(frozen=True)
class Prompt:
    """A prompt and what was said before, with pictures that are still in their files.

    Attributes:
        exchange: the prompt.
        earlier: what was said before.
        model: position of the model that answers.
    """

    exchange: Exchange
    earlier: Sequence[Exchange]
    model: int

    def turns(self) -> list[Turn]:
        """Return the model's conversation before the prompt as turns, without the prompts that it did not answer."""
        turns = []
        for exchange in self.earlier:
            said = exchange.replies[self.model].text
            if said:
                turns.append(Turn("user", exchange.text, [open_picture(p, exchange.pixels) for p in exchange.images]))
                turns.append(Turn("assistant", said))
        return turns


def prepared(model: HLWQModel, prompt: Prompt, settings: Settings) -> TextStream:
    """Return the answer of a model, which starts with the first piece."""
    exchange = prompt.exchange
    return model.stream(
        exchange.text,
        [open_picture(p, exchange.pixels) for p in exchange.images] or None,
        history=prompt.turns() if model.has_chat_template else (),
        system=settings.system.strip() or None,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        max_new_tokens=settings.max_new_tokens,
    )
