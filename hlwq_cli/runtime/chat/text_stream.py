"""An answer that arrives piece by piece, is counted as it arrives, and can be stopped at any token."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer


class TextStream(Iterator[str]):
    """The text of an answer in pieces. The model starts at the first `next`, and stops when the stream is dropped.

    Attributes:
        prompt_tokens: tokens of the prompt, with its images.
    """

    def __init__(
        self, tokenizer: Any, prompt_tokens: int, generate: Callable[..., Any], stop: Sequence[str] = ()
    ) -> None:
        """Wrap `generate`, which takes transformers' `streamer` and `stopping_criteria` and blocks until the end."""
        self.prompt_tokens = prompt_tokens
        self._cancelled = threading.Event()
        self._streamer = _Counting(tokenizer)
        self._pieces = _run(self._streamer, generate, self._cancelled, tuple(stop))

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def tokens(self) -> int:
        """Tokens of the answer so far, with the end token."""
        return len(self._streamer.times)

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token, which waits for the prompt; None before the second token."""
        times = self._streamer.times
        return (len(times) - 1) / max(times[-1] - times[0], 1e-9) if len(times) > 1 else None

    def cancel(self) -> None:
        """Stop the model at its next token; the text so far still arrives. May be called from any thread."""
        self._cancelled.set()

    def close(self) -> None:
        """Stop the model, wait for it, and drop the rest of the text."""
        self._pieces.close()


def _run(
    streamer: TextIteratorStreamer, generate: Callable[..., Any], cancelled: threading.Event, stop: tuple[str, ...]
) -> Generator[str]:
    """Run the model in a thread and yield its text.

    This is not a method of `TextStream`: a dropped stream is then freed at once, which closes this generator.
    """
    failure: list[BaseException] = []
    criteria = StoppingCriteriaList([_Cancelled(cancelled)])

    def work() -> None:
        try:
            with torch.inference_mode():
                generate(streamer=streamer, stopping_criteria=criteria)
        except BaseException as error:
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from _until_stop(streamer, stop)
    finally:
        cancelled.set()
        thread.join()
    if failure:
        raise failure[0]


class _Cancelled(StoppingCriteria):
    """Stops generation when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class _Counting(TextIteratorStreamer):
    """A streamer that records when each token of the answer arrived."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt first, then each token."""
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter())
        super().put(value)  # type: ignore[no-untyped-call]


def cut(text: str, stop: Sequence[str]) -> str:
    """Return the text up to the first stop string."""
    ends = [text.find(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text


def _until_stop(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield text, holding back what may be the start of a stop string."""
    held = ""
    longest = max((len(s) for s in stop), default=1) - 1
    for piece in pieces:
        held += piece
        if any(s in held for s in stop):
            yield cut(held, stop)
            return
        ready = len(held) - longest
        if ready > 0:
            yield held[:ready]
            held = held[ready:]
    if held:
        yield held
