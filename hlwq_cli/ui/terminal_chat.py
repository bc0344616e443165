"""The conversation of `hlwq chat`: lines from stdin, answers on stdout, everything else on stderr."""

from __future__ import annotations

import importlib
import io
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HlwqError, UsageError
from ..runtime import Turn
from .answer import checked_prompt, open_image, speed_line, write_pieces
from .sink import Sink

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..runtime import HLWQModel, TextStream

_HELP = """\
/image FILE  show a picture with the next message; repeat it for more
/reset       start a new conversation
/help        show these commands
//TEXT       send a message that begins with /
Ctrl-C       stop the answer
Ctrl-D       end"""


class TerminalChat:
    """A conversation in the terminal.

    Attributes:
        turns: messages and answers so far; empty for a model without a chat template.
        images: pictures of the next message.
    """

    def __init__(self, sink: Sink, model: HLWQModel, options: Mapping[str, Any]) -> None:
        """Start a conversation.

        Args:
            sink: of the command.
            model: that answers.
            options: of `HLWQModel.stream`.
        """
        self.turns: list[Turn] = []
        self.images: list[Image] = []
        self._sink, self._model, self._options = sink, model, options

    def run(self) -> None:
        """Answer lines until stdin ends. An error ends a message, not the conversation."""
        if isinstance(sys.stdin, io.TextIOWrapper):  # a line that is not UTF-8 must not take others with it
            sys.stdin.reconfigure(errors="surrogateescape")
        if sys.stdin.isatty():
            importlib.import_module("readline")  # editing, and earlier lines by the arrow keys
            self._sink.note("Ctrl-C stops an answer, Ctrl-D ends, /help lists the commands.")
        if not self._model.has_chat_template:
            self._sink.note("This model has no chat template: each message is continued by itself.")
        while (line := self._next_line()) is not None:
            try:
                self._take(line)
            except HlwqError as error:
                self._sink.err.print(f"Error: {error}", soft_wrap=True)
            except KeyboardInterrupt:  # before the answer began, or for the second time
                self._sink.note("Stopped.")

    def _next_line(self) -> str | None:
        """Return the next line, "" if it was cut off by Ctrl-C, or None at the end."""
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                sys.stderr.write("\n")
            return None
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            return "" if sys.stdin.isatty() else None

    def _take(self, line: str) -> None:
        command, _, rest = line.strip().partition(" ")
        if not command:
            return
        if command == "/help":
            self._sink.err.print(_HELP)
        elif command == "/reset":
            self.turns, self.images = [], []
            self._sink.note("New conversation.")
        elif command == "/image":
            self._add_image(rest.strip())
        elif command.startswith("/") and not command.startswith("//"):
            raise UsageError(f"{command} is not a command.", "/help lists the commands.")
        else:
            self._answer(checked_prompt(line.lstrip()[1:] if command.startswith("//") else line))

    def _add_image(self, name: str) -> None:
        if not name:
            raise UsageError("/image needs the name of a file.", "Use for example /image cat.png.")
        if not self._model.supports_images:
            raise UsageError("This model does not support images.", "Load a model that supports images.")
        self.images.append(open_image(Path(name).expanduser()))
        self._sink.note(f"Pictures of the next message: {len(self.images)}.")

    def _answer(self, text: str) -> None:
        images, self.images = self.images, []
        options = {**self._options, "history": tuple(self.turns)}
        stream = self._model.stream(text, images or None, **options)
        try:
            with _ctrl_c_stops(stream):
                answer = write_pieces(stream)
        finally:
            stream.close()
        self._sink.note(speed_line(stream))
        if self._model.has_chat_template:
            self.turns += [Turn("user", text, images), Turn("assistant", answer)]


@contextmanager
def _ctrl_c_stops(stream: TextStream) -> Iterator[None]:
    """Let the first Ctrl-C stop the answer at its next token, and the second one interrupt."""
    is_stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal is_stopped
        if is_stopped:
            raise KeyboardInterrupt
        is_stopped = True
        stream.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
