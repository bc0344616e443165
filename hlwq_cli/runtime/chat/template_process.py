"""Chat templates that run in a process of their own, with limits on time, memory and output."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import UnsupportedError
from .template import refusal

_SCRIPT = Path(__file__).with_name("render_process.py")


class TemplateProcess:
    """Writes conversations with chat templates in a child process, which is started again after it was ended.

    Attributes:
        seconds: time that one conversation may take.
    """

    def __init__(self, seconds: float = 5.0, memory_bytes: int = 2**29, max_characters: int = 8_000_000) -> None:
        self.seconds = seconds
        self._limits = [str(seconds), str(memory_bytes), str(max_characters)]
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._is_ready = False

    def start(self) -> None:
        """Start the process without waiting for it, so that the first conversation need not wait for its imports."""
        with self._lock:
            self._started()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._child is not None:
                self._child.kill()
                self._ended(self._child)

    def render(self, template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """Return a conversation as the prompt of its next turn.

        Args:
            template: a chat template, in Jinja.
            messages: the conversation; see `messages` in conversation.py.
            variables: what else the template may name, such as the special tokens.

        Raises:
            UsageError: the template refuses the conversation.
            UnsupportedError: the template fails, or exceeds a limit.
        """
        request = {"template": template, "messages": list(messages), "variables": dict(variables)}
        with self._lock:
            child = self._started()
            self._is_ready = self._is_ready or bool(_exchange(child, ""))
            line = _exchange(child, json.dumps(request)) if self._is_ready else ""
            if not line:
                raise self._failure(self._ended(child))
        answer = json.loads(line)
        if "text" not in answer:
            raise refusal(answer["kind"], answer["said"])
        return str(answer["text"])

    def _started(self) -> subprocess.Popen[str]:
        if self._child is None:
            # -P: a module in the current folder, which may be a checkpoint's, is not imported
            command = [sys.executable, "-P", str(_SCRIPT), *self._limits]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        return self._child

    def _ended(self, child: subprocess.Popen[str]) -> int:
        """Forget the child, which has ended or was killed; return its exit code."""
        self._child, self._is_ready = None, False
        code = child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with suppress(OSError):  # what was not written yet
                    stream.close()
        return code

    def _failure(self, code: int) -> UnsupportedError:
        took_too_long = code == -signal.SIGALRM
        reason = f"takes more than {self.seconds:g} seconds" if took_too_long else f"ends its process with {code}"
        return UnsupportedError(
            f"The chat template of this model {reason}.", "Use a checkpoint with a template that you trust."
        )


def _exchange(child: subprocess.Popen[str], request: str) -> str:
    """Send a request unless it is empty; return the next line of the answer, empty if the process ends instead."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        if request:
            child.stdin.write(request + "\n")
            child.stdin.flush()
        return child.stdout.readline()
    except OSError:
        return ""
