"""The text that a measurement reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import HlwqError, NotFoundError, UsageError
from ..samples import sample_file

WIKITEXT = "wikitext-2-raw"


@dataclass(frozen=True)
class Text:
    """A text, its name for the protocol line, and what people should know of it."""

    name: str
    text: str
    note: str = ""

    @property
    def sha256(self) -> str:
        """Of the text's bytes."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load_text(data: str | None = None) -> Text:
    """Load the text to measure on.

    Args:
        data: a file; `sample`, the bundled text; `NAME[:CONFIG[:SPLIT]]` of a dataset with a `text` column; or None,
            which means wikitext-2-raw's test split, or the bundled text where that cannot be reached.

    Raises:
        NotFoundError: no such file or dataset.
    """
    if data == "sample":
        return _bundled("")
    if data is None or data == WIKITEXT:
        try:
            return _dataset("Salesforce/wikitext:wikitext-2-raw-v1:test", WIKITEXT)
        except HlwqError:
            if data is not None:
                raise
            return _bundled(f"{WIKITEXT} cannot be reached; the bundled text is used instead.")
    path = Path(data)
    if path.is_file():
        return Text(path.name, path.read_text(errors="replace"))
    return _dataset(data, data)


def _bundled(note: str) -> Text:
    path = sample_file("eval/addresses.txt")
    return Text("sample/addresses", path.read_text(encoding="utf-8"), note)


def _dataset(spec: str, name: str) -> Text:
    """Rows of the `text` column joined by two newlines, as the usual scripts do."""
    from datasets import load_dataset

    repo, _, rest = spec.partition(":")
    config, _, split = rest.partition(":")
    try:
        rows = load_dataset(repo, config or None, split=split or "test")
    except Exception as error:
        raise NotFoundError(
            f"The dataset {spec} cannot be loaded: {type(error).__name__}.", "Give a text file, or --data sample."
        ) from error
    if "text" not in rows.column_names:
        raise UsageError(f"The dataset {spec} has no column `text` but {', '.join(rows.column_names)}.")
    return Text(name, "\n\n".join(rows["text"]))
