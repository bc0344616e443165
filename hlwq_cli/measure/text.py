"""The text that perplexity and divergence are measured on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import HlwqError, UsageError
from ..hub_dataset import open_dataset
from ..samples import sample_file

WIKITEXT = "wikitext-2-raw"


@dataclass(frozen=True)
class Text:
    """A text, its name for the protocol line, and a remark for the user."""

    name: str
    text: str
    note: str = ""

    @property
    def sha256(self) -> str:
        """sha256 of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load_text(data: str | None = None) -> Text:
    """Load the text to measure on.

    Args:
        data: a file; `sample`, the bundled text; `NAME[:CONFIG[:SPLIT]]` of a dataset with a `text` column; or None,
            the test split of wikitext-2-raw, or the bundled text if that cannot be downloaded.

    Raises:
        NotFoundError: there is no such file or dataset.
        UsageError: the dataset has no `text` column.
    """
    if data == "sample":
        return _bundled("")
    if data is None or data == WIKITEXT:
        try:
            return _dataset("Salesforce/wikitext:wikitext-2-raw-v1:test", WIKITEXT)
        except HlwqError:
            if data is not None:
                raise
            return _bundled(f"{WIKITEXT} cannot be downloaded; the bundled text is used instead.")
    path = Path(data)
    if path.is_file():
        return Text(path.name, path.read_text(errors="replace"))
    return _dataset(data, data)


def _bundled(note: str) -> Text:
    path = sample_file("eval/addresses.txt")
    return Text("sample/addresses", path.read_text(encoding="utf-8"), note)


def _dataset(spec: str, name: str) -> Text:
    """Load the rows of the `text` column, joined by two newlines as in common perplexity scripts."""
    rows = open_dataset(spec, "test", "Give a text file, or --data sample.")
    if "text" not in rows.column_names:
        raise UsageError(f"The dataset {spec} has no column `text`; its columns are {', '.join(rows.column_names)}.")
    return Text(name, "\n\n".join(rows["text"]))
