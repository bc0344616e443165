"""What a manifest says of a calibration, in words and as options of `hlwq quantize`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN_TEXT_ORIGIN = "own text"
"""The origin of text that the model wrote itself."""


def describe_calibration(record: Mapping[str, Any]) -> str:
    """Return what a checkpoint was calibrated on, as a phrase.

    Args:
        record: the manifest's `calibration`.
    """
    origin, tokens = str(record.get("origin", "unknown text")), record.get("tokens")
    count = f"{tokens:,} tokens" if isinstance(tokens, int) else "tokens"
    if record.get("kind") == "imatrix":
        return f"the importance matrix {origin} ({count})"
    text = f"{count} of {origin}"
    if origin == OWN_TEXT_ORIGIN:
        text = f"{count} of the model's own text (seed {record.get('seed')})"
    pictures = record.get("pictures")
    return f"{text}, with {pictures} pictures" if pictures else text


def calibration_options(record: Mapping[str, Any]) -> list[str]:
    """Return the options of `hlwq quantize` that calibrate in the same way."""
    if record.get("kind") == "imatrix":
        return ["--imatrix", str(record.get("origin"))]
    if "file" in record:
        return ["--calibrate", str(record["file"])]
    if record.get("origin") == OWN_TEXT_ORIGIN:
        return ["--calibrate", "own", "--seed", str(record.get("seed"))]
    return ["--calibrate", str(record.get("origin"))]
