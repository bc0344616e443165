"""How far an operation is: a bar on a terminal; without one, a line for each finished file or new measurement."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich import progress as bars

from ..progress import Progress, ProgressCallback, ignore_progress
from ..sizes import format_size
from .sink import Format, Sink

_STAGE = bars.TextColumn("{task.description}", style="dim", markup=False)
_COLUMNS: dict[str, tuple[Any, ...]] = {
    "bytes": (
        _STAGE,
        bars.BarColumn(),
        bars.TextColumn("{task.percentage:>3.0f}%"),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    ),
    "steps": (_STAGE, bars.BarColumn(), bars.TimeRemainingColumn()),
}


@contextmanager
def progress_display(sink: Sink, uploads: bool = False) -> Iterator[ProgressCallback]:
    """Yield a callback that shows events on stderr, in the way that fits it.

    Args:
        sink: of the command.
        uploads: finished files are uploads: they get a line on a terminal too, and no line states a speed.
    """
    if sink.format is Format.quiet:
        yield ignore_progress
    elif not sink.err.is_terminal:
        yield _Lines(sink, with_speed=not uploads)
    else:
        with bars.Progress(*_COLUMNS["bytes"], console=sink.err, transient=True) as progress:
            bar = _Bar(progress)
            lines = _Lines(sink, with_speed=False) if uploads else ignore_progress

            def show(event: Progress) -> None:
                bar(event)
                lines(event)

            yield show


class _Bar:
    """One bar, for the current stage of the operation."""

    def __init__(self, progress: bars.Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def __call__(self, event: Progress) -> None:
        self._progress.columns = _COLUMNS[event.unit]
        self._progress.update(self._task, description=event.stage, completed=event.done, total=event.total)


class _Lines:
    """One line for every finished file, and one for every new stage of an operation that counts steps."""

    def __init__(self, sink: Sink, with_speed: bool) -> None:
        self._sink, self._with_speed = sink, with_speed
        self._started = time.monotonic()
        self._first: int | None = None
        self._stages: set[str] = set()

    def __call__(self, event: Progress) -> None:
        if self._first is None:
            self._first = event.done
        if event.file_done:
            fraction = event.done / max(event.total, 1)
            count = f"{event.files_done}/{event.files}"
            self._sink.note(f"{event.stage} ({count}): {fraction:.0%}{self._speed(event.done)}")
        elif event.unit == "steps" and event.stage not in self._stages:
            self._stages.add(event.stage)
            self._sink.note(f"{event.stage} ...")

    def _speed(self, done: int) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f", {format_size((done - (self._first or 0)) / seconds)}/s" if self._with_speed else ""


def hide_library_bars(sink: Sink) -> None:
    """Switch off the bars of huggingface_hub and transformers with --quiet or without a terminal."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    unseen = sink.format is Format.quiet or not sink.err.is_terminal
    if unseen and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:  # the environment variable has priority
        disable_progress_bars()
        if "transformers" in sys.modules:  # it asks huggingface_hub only once, when it is imported
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()


@contextmanager
def quiet_log(sink: Sink) -> Iterator[None]:
    """With --quiet, log only errors of hlwq's libraries inside this context."""
    logger = logging.getLogger("hlwq")
    before = logger.level
    if sink.format is Format.quiet:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
