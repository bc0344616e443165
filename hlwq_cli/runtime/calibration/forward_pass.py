"""A forward pass that can be stopped in front of a layer, and go on later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence


class FinishedError(Exception):
    """Ends a forward pass whose remaining products are not needed."""


class _CancelledError(BaseException):
    """Ends a forward pass that nobody waits for any more."""


class ForwardPass:
    """A forward pass in a thread of its own. Only one thread runs at a time: this one, or the one that resumes it.

    Args:
        forward: the pass. It calls `pause` in front of each stage that is not in memory.
        visits: the stages it is expected to run, in order.

    Attributes:
        waiting: number of the stage that it waits for; None before it begins and when it is over.
        is_over: whether it has ended.
    """

    def __init__(self, forward: Callable[[], None], visits: Sequence[int]) -> None:
        self._forward, self._left = forward, list(visits)
        self.waiting: int | None = None
        self.is_over = self._is_cancelled = False
        self._error: BaseException | None = None
        self._turn, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)

    @property
    def ahead(self) -> frozenset[int]:
        """Stages that it has still to run."""
        return frozenset() if self.is_over else frozenset(self._left)

    def resume(self) -> None:
        """Let it go on until it pauses or ends.

        Raises:
            Exception: what the pass raised.
        """
        if not self._thread.is_alive():
            self._thread.start()
        self._turn.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error

    def pause(self, stage: int) -> None:
        """Wait in front of a stage, in the thread of the pass."""
        if stage in self._left:
            del self._left[: self._left.index(stage)]
        self.waiting = stage
        self._paused.release()
        self._turn.acquire()
        self.waiting = None
        if self._left[:1] == [stage]:
            del self._left[0]
        if self._is_cancelled:
            raise _CancelledError

    def cancel(self) -> None:
        """End it where it is, and wait for its thread."""
        self._is_cancelled = True
        if self._thread.is_alive():
            self._turn.release()
            self._thread.join()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._is_cancelled:
                self._forward()
        except (FinishedError, _CancelledError):
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.is_over, self.waiting = True, None
            self._paused.release()
