"""`hlwq demo` as a process: its address, its output and its exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.cli.run_command import environment, start_process

NOWHERE = "http://127.0.0.9:9"
"""A proxy that is not there: whatever the server asks of another machine fails, and at once."""


class DemoServer:
    """A running demo.

    Attributes:
        url: the address it printed.
        out: all lines of stdout so far.
        err: all lines of stderr so far.
    """

    def __init__(self, arguments: list[str | Path], **variables: str) -> None:
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
        settings = {"OMP_NUM_THREADS": "1", "NO_PROXY": "", "no_proxy": ""}
        self.process = start_process("demo", *arguments, env=environment(**(settings | proxies | variables)))
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=_collect, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        self._readers[1].start()
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http"), self.end()
        self.out.append(self.url + "\n")
        self._readers[0].start()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal and wait; return exit code, stdout and stderr."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        for reader in self._readers:
            if reader.is_alive():
                reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code, "".join(self.out), "".join(self.err)


def _collect(stream: IO[str], lines: list[str]) -> None:
    lines.extend(stream)


@contextmanager
def demo(*arguments: str | Path, **variables: str) -> Iterator[DemoServer]:
    """Run the command during the context."""
    server = DemoServer([*arguments], **variables)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end()
