"""The text of a model card, and what a checkpoint inherits from the YAML block at its start.

Cards of sources are written by strangers: no card may end a run, or take its time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from ...errors import CorruptError, HlwqError
from ..io import open_regular, read_errors

INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
_MAX_CARD_BYTES = 20_000_000
_MAX_HEAD = 65_536
"""Characters of a card's head that are read as YAML: those of the inherited keys."""
_MAX_LISTS = 100  # of a head in brackets; 20,000 of them within each other took 1.6 s to read


def read_card(card: Path) -> str:
    """Return the text of a card; "" if there is none.

    Raises:
        CorruptError: it is larger than any card.
    """
    if not card.is_file():
        return ""
    with os.fdopen(open_regular(card), "rb") as file, read_errors(card, card.name):
        data = file.read(_MAX_CARD_BYTES + 1)
    if len(data) > _MAX_CARD_BYTES:
        raise CorruptError(f"{card} has more than {_MAX_CARD_BYTES:,} bytes.", "Shorten it.")
    return data.decode(errors="replace")


def front_matter(card: Path) -> dict[str, Any]:
    """Return what a checkpoint inherits from the YAML block at the start of a card; an empty dict if there is none."""
    return _read_head(card)[0]


def _read_head(card: Path) -> tuple[dict[str, Any], bool]:
    """Return what a checkpoint inherits from the YAML block at the start of a card, and whether all was understood.

    Only the lines of inherited keys are read, and all values as text: what else the block holds may be anything.
    """
    try:
        head = "\n".join(_inherited_lines(read_card(card)))
        if len(head) > _MAX_HEAD or head.count("[") + head.count("{") > _MAX_LISTS:
            return {}, False
        document = yaml.load(head, yaml.BaseLoader)  # knows only text, lists and mappings
    except (yaml.YAMLError, RecursionError, ValueError, HlwqError):
        return {}, False
    if not isinstance(document, dict):
        return {}, document is None
    known = {key: value for key, value in document.items() if key in INHERITED and value not in ("", "null", "~")}
    good = {key: value for key, value in known.items() if is_text(value)}
    return good, len(good) == len(known)


def _inherited_lines(card: str) -> list[str]:
    """Return the lines of the block at the start of a card that belong to inherited keys."""
    first, *lines = card.split("\n")
    found: list[str] = []
    if first.rstrip() != "---":
        return []
    is_wanted = False
    for line in lines:
        if line.rstrip() == "---":
            return found
        if line[:1].isalpha():
            is_wanted = line.partition(":")[0].rstrip() in INHERITED
        if is_wanted:
            found.append(line)
    return []


def is_text(value: Any) -> bool:
    """Return whether a value of a card is text or a list of texts."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(entry, str) for entry in value))


def card_warnings(card: Path) -> tuple[str, ...]:
    """Return a warning if licence or language in the head of a source's card cannot be read."""
    if _read_head(card)[1]:
        return ()
    return (f"The head of {card.name} is not valid, so the card may lack licence and language.",)
