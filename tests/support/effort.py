"""Count the work of Python code, which a clock on a busy machine cannot."""

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


def lines_run(work: Callable[[], T]) -> tuple[T, int]:
    """Return what `work` returns, and how many lines of Python it runs in this thread and the threads that it starts.

    What a function of C does in one call counts as its line does: once.
    """
    count = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace(), threading.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        result = work()
    finally:
        sys.settrace(before[0])
        threading.settrace(before[1])
    return result, count
