"""The queue of requests that wait for the model, first come, first served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class RequestQueue:
    """A queue in which the first request has the model to itself until it leaves."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets: deque[Ticket] = deque()

    @contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """Join the queue; leave it at the end of the context, from any position."""
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
    """One request in the queue."""

    def __init__(self, changed: threading.Condition, tickets: deque[Ticket]) -> None:
        self._changed = changed
        self._tickets = tickets

    @property
    def ahead(self) -> int:
        """Number of requests before this one, including the one being served."""
        with self._changed:
            return self._tickets.index(self)

    def wait(self, seconds: float) -> bool:
        """Wait until this request is first, at most `seconds`; return whether it is first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._tickets[0] is self, seconds)
