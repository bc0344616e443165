"""Progress events: what every long operation reports, and a counter for operations that use several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Unit = Literal["bytes", "steps"]


@dataclass(frozen=True)
class Progress:
    """How far an operation is.

    Attributes:
        stage: the current work, for people: a tensor, a file or a measurement.
        done: units finished so far.
        total: units in all.
        unit: what `done` and `total` count.
        file_done: whether the file that `stage` names has just been finished (a shard written, a file uploaded).
        files_done: files finished so far, in an operation that counts them.
        files: files in all, likewise.
    """

    stage: str
    done: int
    total: int
    unit: Unit = "bytes"
    file_done: bool = False
    files_done: int = 0
    files: int = 0


ProgressCallback = Callable[[Progress], None]


def ignore_progress(event: Progress) -> None:
    """Do nothing: the callback of a caller who gave none."""


class ProgressCounter:
    """Adds up the bytes that several threads have worked on, and reports each new sum.

    Args:
        report: called with one event at a time, whichever thread adds.
        stage: see `Progress`.
        total: see `Progress`.
    """

    def __init__(self, report: ProgressCallback, stage: str, total: int) -> None:
        self._report, self._stage, self._total = report, stage, total
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count `count` more bytes as done."""
        with self._lock:
            self._done += count
            self._report(Progress(self._stage, self._done, self._total))
