"""Output of commands: stdout carries only the result, in the requested form; everything else goes to stderr."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ..printable import printable

SCHEMA = 1


class Format(StrEnum):
    """Form of a result; `auto` is `human`."""

    auto = "auto"
    human = "human"
    json = "json"
    quiet = "quiet"


class _SafeConsole(Console):
    """A console that escapes control characters of what it shows: names of strangers must not steer a terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None and not segment.text.isprintable():
                segment = Segment(printable(segment.text), segment.style)
            yield segment


class _Out(_SafeConsole):
    """A console on stdout that raises BrokenPipeError for `Sink.result` to handle; Rich would end the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Sink:
    """Writes one result to stdout; all other output of a command goes to `err`, a console on stderr."""

    def __init__(self, format: Format, json_flag: bool = False, quiet_flag: bool = False) -> None:
        self.format = Format.json if json_flag else Format.quiet if quiet_flag else format
        wide = 120 if not sys.stdout.isatty() else None
        # Brackets in file names must not be read as markup.
        self.out = _Out(width=wide, highlight=False, markup=False, soft_wrap=True)
        self.err = _SafeConsole(
            stderr=True, highlight=False, markup=False, width=wide if not sys.stderr.isatty() else None
        )

    def result(self, command: str, value: object, human: Callable[[Console], None], quiet: str) -> None:
        """Write a result: as JSON from `value`, for people with `human`, or as the one line `quiet`."""
        try:
            self._write(command, value, human, quiet)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader closed the pipe early, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _write(self, command: str, value: object, human: Callable[[Console], None], quiet: str) -> None:
        if self.format is Format.json:
            document = {"schema": SCHEMA, "command": command, **_plain(value)}
            json.dump(document, sys.stdout, indent=1, allow_nan=False)
            sys.stdout.write("\n")
        elif self.format is Format.quiet:
            is_shown = sys.stdout.isatty() or not _is_utf8(quiet)
            sys.stdout.write((printable(quiet) if is_shown else quiet) + "\n")
        else:
            human(self.out)

    def note(self, text: str) -> None:
        """Write a line to stderr, unless --quiet is given."""
        if self.format is not Format.quiet:
            self.err.print(text, soft_wrap=True)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # the name of a file in another encoding
        return False
    return True


def _plain(value: Any) -> Any:
    """Convert dataclasses (without properties), paths and tuples to JSON types; numbers that are not finite to null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, os.PathLike):
        return str(Path(value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
