"""The open files of a source: each fetched and opened once, the next one while the present one is used."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path

PREFETCH_FILES = 2
"""Files held at a time in a run that goes through them in order: the one in use, and the next."""


class PrefetchedFiles:
    """File descriptors by file name.

    Without `prefetch` a file is located and opened by whoever asks first. After it a thread locates them in the order
    given, never more than two before the earliest is let go, and whoever asks waits for it.

    Args:
        locate: gives a file's path, and fetches it before where it must.
        drop: called with a file's name when it was let go.
    """

    def __init__(self, locate: Callable[[str], Path], drop: Callable[[str], None]) -> None:
        self._locate, self._drop = locate, drop
        self._lock = threading.Lock()
        self._open: dict[str, Future[int]] = {}
        self._room = threading.Semaphore(PREFETCH_FILES)

    def descriptor(self, file: str) -> int:
        """An open file's descriptor, to be read from and not to be closed."""
        with self._lock:
            future = self._open.get(file)
            first = future is None
            if future is None:
                future = self._open[file] = Future()
        if first:
            self._fill(file, future)
        return future.result()

    def prefetch(self, order: Sequence[str]) -> None:
        """Locate files ahead of their use, in this order; each must be let go in the end."""
        wanted = [(file, Future[int]()) for file in order if file not in self._open]
        self._open.update(wanted)
        for _ in range(len(order) - len(wanted)):
            self._room.acquire(blocking=False)
        threading.Thread(target=self._prefetch, args=(wanted,), daemon=True, name="fetch").start()

    def _prefetch(self, wanted: list[tuple[str, Future[int]]]) -> None:
        for file, future in wanted:
            self._room.acquire()
            if future.cancelled() or not self._fill(file, future):
                return self.stop()

    def _fill(self, file: str, future: Future[int]) -> bool:
        """Returns whether the file is open."""
        try:
            descriptor = os.open(self._locate(file), os.O_RDONLY | os.O_CLOEXEC)
        except BaseException as error:
            with suppress(InvalidStateError):
                future.set_exception(error)
            return False
        try:
            future.set_result(descriptor)
        except InvalidStateError:  # cancelled meanwhile
            os.close(descriptor)
            return False
        return True

    def stop(self) -> None:
        """Fetch no more; whoever waits for a file that is not open yet is told so by CancelledError."""
        for future in list(self._open.values()):
            future.cancel()
        self._room.release()

    def release(self, file: str) -> None:
        """Close a file that will not be read again."""
        os.close(self._open.pop(file).result())
        self._drop(file)
        self._room.release()

    def close(self) -> None:
        """Close all files that are open."""
        self.stop()
        for future in self._open.values():
            if future.done() and not future.cancelled() and future.exception() is None:
                os.close(future.result())
        self._open.clear()
