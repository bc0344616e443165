"""People who wait for the model: first come, first served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class RequestQueue:
    """A queue whose head has the model to itself until it leaves."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets: deque[Ticket] = deque()

    @contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """Stand in line; on leaving, from whichever ticket, the next moves up."""
        ticket = Ticket(self._changed, self._tickets)
        with self._changed:
            self._tickets.append(ticket)
        try:
            yield ticket
        finally:
            with self._changed:
                self._tickets.remove(ticket)
                self._changed.notify_all()


class Ticket:
    """Where one request stands."""

    def __init__(self, changed: threading.Condition, tickets: deque[Ticket]) -> None:
        self._changed = changed
        self._tickets = tickets

    @property
    def ahead(self) -> int:
        """How many come first, the one being served included."""
        with self._changed:
            return self._tickets.index(self)

    def wait(self, seconds: float) -> bool:
        """Wait until it is one's turn, at most so long; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._tickets[0] is self, seconds)
