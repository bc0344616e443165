"""Options that several commands share."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from ..errors import UsageError
from .sink import Format

FormatOption = Annotated[Format, typer.Option("--format", help="How the result is written to stdout.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Same as --format json.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Same as --format quiet: one line.")]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int:
    """`2GB`, `500MB`, `1.5G` or plain bytes, in decimal units."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text.upper())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"{text!r} is not a size.", "Write for example 2GB or 500MB.")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_share(text: str) -> float:
    """`10%` or `0.1`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"{text!r} is not a share.", "Write for example 10%.")
    return value
