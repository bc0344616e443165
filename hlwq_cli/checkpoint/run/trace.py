"""A trace of what each thread of a run did when, for a trace viewer or scripts/studies/plot_trace.py."""

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
from ..format import new_file, write_file


@dataclass
class Trace:
    """Time spans of all threads, in seconds of `time.time`.

    Attributes:
        recording: if False, `span` records nothing.
        spans: (name, bytes, thread, start, end) of each.
        notes: other figures of the run, such as peak memory.
    """

    recording: bool = True
    spans: list[tuple[str, int, str, float, float]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def span(self, what: str, nbytes: int = 0) -> Iterator[None]:
        """Record the time spent inside this context as `what`, which handles `nbytes` bytes."""
        if not self.recording:
            yield
            return
        start = time.time()
        try:
            yield
        finally:
            self.spans.append((what, nbytes, threading.current_thread().name, start, time.time()))

    def save(self, path: Path) -> None:
        """Write the trace to a file; see `dump`."""
        write_file(path, self.dump())

    def dump(self) -> bytes:
        """Return the trace in Chrome's format: one complete event per span, in microseconds."""
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
        return json.dumps({"traceEvents": events, "otherData": self.notes}).encode()


@contextmanager
def recorded() -> Iterator[Trace]:
    """Yield a trace that is saved to the file in HLWQ_TRACE when the context ends, even after an error.

    The file is opened at the start, so that an hour of work does not end in an error. Without HLWQ_TRACE the trace
    records nothing.

    Raises:
        NotFoundError: the folder of the file does not exist.
        NotAllowedError: the file cannot be written.
    """
    path = os.environ.get("HLWQ_TRACE")
    if not path:
        yield Trace(recording=False)
        return
    if not Path(path).parent.is_dir():
        raise NotFoundError(f"HLWQ_TRACE is {path}, but its folder does not exist.", "Create it, or name another file.")
    trace = Trace()
    if (started := _process_start()) is not None:
        trace.spans.append(("start Python", 0, threading.current_thread().name, started, time.time()))
    failure = None
    with new_file(Path(path)) as file:
        try:
            yield trace
        except BaseException as error:
            failure = error
        file.write(trace.dump())
    if failure is not None:
        raise failure


def _process_start() -> float | None:
    """Return when this process began, on Linux: field 22 of stat in proc(5), in ticks since boot."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return None
    return time.time() - age
