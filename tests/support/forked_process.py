"""`hlwq` as a process that is forked, with all imports done, instead of started anew: see forkserver.py."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
READ_WHEN_USED = {
    "HF_TOKEN", "HLWQ_DEBUG", "HLWQ_TRACE", "HLWQ_DEMO_AUTH", "TERM", "COLUMNS", "NO_COLOR", "TMPDIR", "HTTP_PROXY",
    "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "no_proxy", "PYTEST_CURRENT_TEST",
}  # fmt: skip
"""Variables that a child may have otherwise than the fork server: no module reads them when it is imported."""


class ForkServer:
    """A process that forks; it ends with this one.

    Attributes:
        environment: the variables it was started with.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._control, inherited = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with inherited:
            command = [sys.executable, "-m", "tests.support.forkserver", str(inherited.fileno())]
            self._process = subprocess.Popen(command, env=self.environment, cwd=ROOT, pass_fds=[inherited.fileno()])
        atexit.register(self._end)

    def _end(self) -> None:
        self._control.close()
        self._process.wait(10)

    def can_run(self, environment: Mapping[str, str]) -> bool:
        """Whether a process with these variables finds its modules as they would import themselves."""
        changed = {n for n, _ in {*environment.items()} ^ {*self.environment.items()}}
        return changed <= READ_WHEN_USED

    def request(self, request: Mapping[str, object], streams: Sequence[int]) -> socket.socket:
        """Ask for a child; return the socket that first gets its process id and later its exit code."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._control, [json.dumps(request).encode()], [*streams, theirs.fileno()])
        return mine


class ForkedProcess:
    """A running `hlwq`, used like `subprocess.Popen`. `limits` are its resources; it runs the Python `before` first.

    Attributes:
        pid: the process id.
        stdout: what it prints, unless `stdout` was given.
        stderr: what it says, unless `stderr` was given.
        returncode: the exit code, or the negative number of the signal that ended it; None while it runs.
    """

    def __init__(
        self,
        server: ForkServer,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        limits: Mapping[int, int] | None = None,
        before: str = "",
    ) -> None:
        request = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(cwd or Path.cwd()),
            "limits": [*(limits or {}).items()],
            "before": before,
        }
        nothing = os.open(os.devnull, os.O_RDWR)
        self.stdout, out = _stream(stdout, nothing)
        self.stderr, err = _stream(stderr, nothing)
        self._status = server.request(request, [nothing if stdin == subprocess.DEVNULL else stdin, out, err])
        for descriptor in {nothing} | ({out} if self.stdout else set()) | ({err} if self.stderr else set()):
            os.close(descriptor)
        self.pid = int(self._status.recv(64))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.returncode if self._ended(0) else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends; return the exit code."""
        if not self._ended(timeout):
            raise subprocess.TimeoutExpired(f"hlwq, process {self.pid}", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def _ended(self, timeout: float | None) -> bool:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(self._status.recv(64))
            self._status.close()
        return self.returncode is not None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Read stdout and stderr until both end, wait, and return what was read."""
        until = time.monotonic() + timeout
        read = {stream: "" for stream in (self.stdout, self.stderr) if stream}

        def collect(stream: IO[str]) -> None:
            read[stream] = stream.read()
            stream.close()

        readers = [threading.Thread(target=collect, args=(stream,), daemon=True) for stream in read]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        for reader in readers:
            reader.join(max(0, until - time.monotonic()))
        return (read[self.stdout] if self.stdout else "", read[self.stderr] if self.stderr else "")


def _stream(wanted: int, nothing: int) -> tuple[IO[str] | None, int]:
    """Return the end to read here, and the descriptor that the child gets."""
    if wanted == subprocess.PIPE:
        read, write = os.pipe()
        return open(read), write
    return None, nothing if wanted == subprocess.DEVNULL else wanted
