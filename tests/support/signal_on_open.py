"""A signal that this process gets at a chosen moment: when it opens a file."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


class SignalOnOpen:
    """Sends a signal to this process when it opens a file whose path has a text in it, once."""

    def __init__(self) -> None:
        self._text = ""
        self._number = signal.SIGINT
        sys.addaudithook(self._hook)

    def arm(self, text: str, number: signal.Signals = signal.SIGINT) -> None:
        """Send the signal at the next such file."""
        self._text, self._number = text, number

    @property
    def is_armed(self) -> bool:
        """Whether the signal was not sent yet."""
        return bool(self._text)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._text and event == "open" and self._text in str(arguments[0]):
            self._text = ""
            os.kill(os.getpid(), self._number)
