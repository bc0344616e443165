"""Format and parse sizes, in decimal units as disks and the Hub use them, and parse fractions."""

from __future__ import annotations

import re

from .errors import UsageError

MAX_SIZE = 1e15
"""The largest number in a size, before its unit."""
_UNITS = {"T": 10**12, "G": 10**9, "M": 10**6, "K": 10**3}


def format_size(n: float) -> str:
    """Format a number of bytes with two decimals: `17.55 GB`."""
    for unit, scale in _UNITS.items():
        if n >= scale:
            return f"{n / scale:.2f} {'k' if unit == 'K' else unit}B"
    return f"{n:.0f} B"


def parse_size(text: str) -> int:
    """Parse a size such as `2GB`, `500MB`, `1.5G` or a plain number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text.upper())
    if not match or not 0 < float(match[1]) <= MAX_SIZE:
        raise UsageError(f"{text!r} is not a size.", "Use for example 2GB or 500MB.")
    return int(float(match[1]) * _UNITS.get(match[2], 1))


def parse_fraction(text: str) -> float:
    """Parse a fraction from 0 to 1, such as `10%` or `0.1`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"{text!r} is not a fraction.", "Use for example 10%.")
    return value
