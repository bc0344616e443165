"""People who wait for the model: first come, first served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Line:
    """A queue whose head has the model to itself until it leaves."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._places: deque[Place] = deque()

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Stand in line; on leaving, from whichever place, the next moves up."""
        place = Place(self._changed, self._places)
        with self._changed:
            self._places.append(place)
        try:
            yield place
        finally:
            with self._changed:
                self._places.remove(place)
                self._changed.notify_all()


class Place:
    """Where one request stands."""

    def __init__(self, changed: threading.Condition, places: deque[Place]) -> None:
        self._changed = changed
        self._places = places

    @property
    def ahead(self) -> int:
        """How many come first, the one being served included."""
        with self._changed:
            return self._places.index(self)

    def wait(self, seconds: float) -> bool:
        """Wait until it is one's turn, at most so long; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._places[0] is self, seconds)
