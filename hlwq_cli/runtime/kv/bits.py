"""Widths of the codes of a key/value cache: "4", "4,3", 4 or (4, 3), keys first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...codec import MAX_BITS, MIN_BITS
from ...errors import UsageError


@dataclass(frozen=True)
class KVBits:
    """Bits of a code, for keys and for values."""

    keys: int
    values: int

    def __str__(self) -> str:
        return str(self.keys) if self.keys == self.values else f"{self.keys},{self.values}"

    @classmethod
    def parse(cls, given: KVBits | int | str | Sequence[int]) -> KVBits:
        """Read one width, or one for keys and one for values.

        Raises:
            UsageError: not one or two numbers from 2 to 8.
        """
        if isinstance(given, KVBits):
            return given
        listed = isinstance(given, Sequence) and not isinstance(given, str)
        parts = [str(part).strip() for part in given] if listed else str(given).split(",")  # type: ignore[union-attr]
        widths = [int(part) if part.strip().isdecimal() else 0 for part in parts]
        if len(widths) not in (1, 2) or not all(MIN_BITS <= w <= MAX_BITS for w in widths):
            raise UsageError(
                f"{given!r} is not a valid width of keys and values.",
                f"Give one number from {MIN_BITS} to {MAX_BITS}, or two: keys, values.",
            )
        return cls(widths[0], widths[-1])
