"""Answers of a model on stdout: piece by piece for people, whole in other forms."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NotFoundError, UsageError
from ..printable import printable
from .sink import Format, Sink

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..runtime import HLWQModel, TextStream


@dataclass(frozen=True)
class Answer:
    """An answer and its size.

    Attributes:
        text: the answer, without special tokens.
        prompt_tokens: number of tokens of the prompt, with its template and its images.
        tokens: number of tokens of the answer, with the end token.
        tokens_per_second: decode speed after the first token; None below two tokens.
    """

    text: str
    prompt_tokens: int
    tokens: int
    tokens_per_second: float | None


def show_answer(sink: Sink, stream: TextStream) -> None:
    """Show the answer of `hlwq generate`; for people each piece as it comes, and then the speed on stderr."""
    is_streamed = sink.format in (Format.auto, Format.human)
    text = write_pieces(stream) if is_streamed else "".join(stream)
    answer = Answer(text, stream.prompt_tokens, stream.tokens, stream.tokens_per_second)
    if is_streamed:
        sink.note(speed_line(stream))
    else:
        sink.result("generate", answer, lambda console: None, text)


def write_pieces(pieces: Iterable[str]) -> str:
    """Write pieces of text to stdout, each at once, and a line feed; return the text.

    On a terminal control characters are escaped. If the reader closes the pipe, the rest is dropped.
    """
    is_shown, text = sys.stdout.isatty(), ""
    try:
        for piece in pieces:
            text += piece
            sys.stdout.write(printable(piece) if is_shown else piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return text


def speed_line(stream: TextStream) -> str:
    """Return the number of tokens of an answer, and their speed if there are two."""
    count = f"{stream.tokens:,} token{'' if stream.tokens == 1 else 's'}"
    speed = stream.tokens_per_second
    return f"[{count}]" if speed is None else f"[{count}, {speed:.1f} tokens/s]"


def open_model(sink: Sink, path: str, **how: Any) -> HLWQModel:
    """Load a model to talk to; see `HLWQModel.from_pretrained` for the arguments and errors."""
    from ..progress import Progress
    from ..runtime import HLWQModel
    from .progress import hide_library_bars, progress_display, quiet_log

    hide_library_bars(sink)
    with quiet_log(sink), progress_display(sink) as progress:
        progress(Progress(f"loading {path}", 0, 1, "steps"))
        return HLWQModel.from_pretrained(path, **how)


def open_image(path: Path) -> Image:
    """Open a picture that the user names.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it is not a picture that can be read.
    """
    from .demo import open_picture

    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.", "Check the name of the picture.")
    return open_picture(path)


def checked_prompt(text: str) -> str:
    """Return a prompt.

    Raises:
        UsageError: it is empty, or has bytes that are not UTF-8.
    """
    if not text.strip():
        raise UsageError("The prompt is empty.", "Give a text with -p, or with -p - on stdin.")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UsageError("The prompt is not valid UTF-8.", "Convert it first, for example with iconv.")
    return text
