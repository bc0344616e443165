"""Text of strangers, made fit to be shown: names in a checkpoint must not steer a terminal."""

from __future__ import annotations

import re

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of surrogate pairs, which no encoding can write."""
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What steers a terminal or reverses the order of letters; tabs and line feeds are left alone."""


def printable(text: str) -> str:
    """Return a text with its control characters escaped; tabs and line feeds stay."""
    if text.isprintable():
        return text
    return _STEERING.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """Return a text as one line without control characters."""
    return printable(" ".join(text.splitlines()) if "\n" in text else text)
