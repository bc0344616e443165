"""What each thread of a run did when, to be looked at in a trace viewer or drawn by scripts/studies/plot_trace.py."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import NotFoundError


@dataclass
class Trace:
    """Spans of time by thread, in seconds of the clock `time.time`.

    Attributes:
        recording: false makes every method do nothing.
        spans: (what, bytes, thread, start, end).
        notes: other figures of the run, such as peak memory.
    """

    recording: bool = True
    spans: list[tuple[str, int, str, float, float]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def span(self, what: str, nbytes: int = 0) -> Iterator[None]:
        """Record what is done inside the `with`."""
        if not self.recording:
            yield
            return
        start = time.time()
        try:
            yield
        finally:
            self.spans.append((what, nbytes, threading.current_thread().name, start, time.time()))

    def save(self, path: Path) -> None:
        """Write Chrome's trace format: one complete event a span, microseconds."""
        threads = {name: number for number, name in enumerate(dict.fromkeys(span[2] for span in self.spans))}
        events: list[dict[str, Any]] = [
            {"name": "thread_name", "ph": "M", "pid": 0, "tid": number, "args": {"name": name}}
            for name, number in threads.items()
        ]
        events += [
            {
                "name": what,
                "ph": "X",
                "pid": 0,
                "tid": threads[thread],
                "ts": round(start * 1e6),
                "dur": round((end - start) * 1e6),
                "args": {"bytes": nbytes},
            }
            for what, nbytes, thread, start, end in self.spans
        ]
        path.write_text(json.dumps({"traceEvents": events, "otherData": self.notes}))


@contextmanager
def recorded() -> Iterator[Trace]:
    """A trace that is saved to the file HLWQ_TRACE names, however the `with` ends; a dead one without it.

    Raises:
        NotFoundError: the file's folder is not there.
    """
    path = os.environ.get("HLWQ_TRACE")
    if path and not Path(path).parent.is_dir():
        raise NotFoundError(f"HLWQ_TRACE is {path}, and there is no such folder.", "Make it, or name another file.")
    trace = Trace(recording=bool(path))
    if path and (started := _process_start()) is not None:
        trace.spans.append(("start Python", 0, threading.current_thread().name, started, time.time()))
    try:
        yield trace
    finally:
        if path:
            trace.save(Path(path))


def _process_start() -> float | None:
    """When this process began, on Linux: field 22 of proc(5)'s stat, in ticks since boot."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return None
    return time.time() - age
