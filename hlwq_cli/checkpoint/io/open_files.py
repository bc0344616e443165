"""The open files of a source. Each is fetched and opened once, and the next one while the current one is read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path

from .local_files import open_regular

PREFETCH_FILES = 2
"""Maximum number of files held at a time by a run that reads them in order: the current one and the next."""


class PrefetchedFiles:
    """File descriptors by file name.

    By default the first thread that needs a file locates and opens it. After `prefetch`, a background thread does so in
    the given order, at most `PREFETCH_FILES` before the first is released, and other threads wait for it.

    Args:
        locate: returns a file's path; fetches the file first if needed.
        drop: called with a file's name after its release.
    """

    def __init__(self, locate: Callable[[str], Path], drop: Callable[[str], None]) -> None:
        self._locate, self._drop = locate, drop
        self._lock = threading.Lock()
        self._open: dict[str, Future[int]] = {}
        self._room = threading.Semaphore(PREFETCH_FILES)

    def descriptor(self, file: str) -> int:
        """Return the descriptor of an open file, for reading. The caller must not close it."""
        with self._lock:
            future = self._open.get(file)
            first = future is None
            if future is None:
                future = self._open[file] = Future()
        if first:
            self._fill(file, future)
        return future.result()

    def prefetch(self, order: Sequence[str]) -> None:
        """Locate files ahead of their use, in this order. Each must be released in the end."""
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
        """Locate and open a file, set the future's result or error, and return whether the file is open."""
        try:
            descriptor = open_regular(self._locate(file), file)
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
        """Fetch no more files. Threads that wait for a file that is not open yet get a CancelledError."""
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
