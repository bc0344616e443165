"""How far a run is: a bar on a terminal, one line a shard without one."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..sizes import format_size
from .sink import Format, Sink

if TYPE_CHECKING:
    from ..checkpoint import Progress as RunProgress
    from ..hub.upload import PushProgress


class RunDisplay(Protocol):
    """Is told how far a quantize run is."""

    def __call__(self, event: RunProgress) -> None:
        """Show `event`."""


@contextmanager
def run_display(sink: Sink) -> Iterator[RunDisplay]:
    """The display that fits where stderr goes."""
    if sink.format is Format.quiet:
        yield lambda event: None
    elif sink.err.is_terminal:
        with _bar(sink) as progress:
            task = progress.add_task("", total=None)
            yield lambda event: progress.update(
                task, completed=event.done_bytes, total=event.total_bytes, description=event.tensor or event.shard
            )
    else:
        yield _Lines(sink)


@contextmanager
def bytes_display(sink: Sink, total: int, what: str) -> Iterator[tuple[Progress | None, TaskID | None]]:
    """A plain bar over `total` bytes on a terminal, and nothing without one."""
    if sink.format is Format.quiet or not sink.err.is_terminal:
        yield None, None
    else:
        with _bar(sink) as progress:
            yield progress, progress.add_task(what, total=total)


@contextmanager
def steps_display(sink: Sink) -> Iterator[Callable[[str, int, int], None]]:
    """A bar that counts steps on a terminal; without one, a line when the work changes."""
    _leave_bars_to_terminals(sink)
    if sink.format is Format.quiet:
        with _silence():
            yield lambda what, done, total: None
    elif sink.err.is_terminal:
        columns = (TextColumn("{task.description}", style="dim", markup=False), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=sink.err, transient=True) as progress:
            task = progress.add_task("")
            yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)
    else:
        told: set[str] = set()

        def tell(what: str, done: int, total: int) -> None:
            if what not in told:
                told.add(what)
                sink.note(f"{what} ...")

        yield tell


def upload_display(sink: Sink) -> Callable[[PushProgress], None]:
    """A line for every file sent; on a terminal huggingface_hub adds its bar for the bytes of a file."""
    _leave_bars_to_terminals(sink)

    def tell(event: PushProgress) -> None:
        if event.done:
            share = event.sent_bytes / max(event.total_bytes, 1)
            sink.note(f"{event.file} ({event.sent_files}/{event.files}): {share:.0%}")

    return tell


def _leave_bars_to_terminals(sink: Sink) -> None:
    """Switch off the bars of huggingface_hub, and of transformers with them, where nobody sees or wants them."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    unseen = sink.format is Format.quiet or not sink.err.is_terminal
    if unseen and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:  # where the environment decides, it has priority
        disable_progress_bars()
        if "transformers" in sys.modules:  # which asks huggingface_hub once, when it is imported
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what hlwq's libraries say beside the result to themselves."""
    logger = logging.getLogger("hlwq")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _bar(sink: Sink) -> Progress:
    return Progress(
        TextColumn("{task.description}", style="dim", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=sink.err,
        transient=True,
    )


class _Lines:
    """One line for every finished shard."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.started = time.monotonic()
        self.before: int | None = None

    def __call__(self, event: RunProgress) -> None:
        if self.before is None:
            self.before = event.done_bytes
        if event.shard:
            seconds = max(time.monotonic() - self.started, 1e-9)
            speed = format_size((event.done_bytes - self.before) / seconds)
            done = f"{event.shards_done}/{event.shards}"
            self.sink.note(f"{event.shard} ({done}): {event.done_bytes / event.total_bytes:.0%}, {speed}/s")
