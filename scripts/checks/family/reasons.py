"""Why classes were not tried, in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

REASONS = (
    (r"was not reached", "was not reached in this sweep"),
    (r"requires the (\w+) library|requires (\w+) to be installed|No module named '(\w+)'", "needs {}, which is absent"),
    (r"takes too long", "transformers takes too long to build it or run it"),
    (r"million parameters it is too large", "is too large at the smallest sizes that build"),
    (r"^is not built: ", "its settings depend on each other: no small sizes that are known here fit"),
    (r"^is not saved: ", "transformers does not save it"),
    (r"with other values every time", "transformers does not save all weights: each load fills the rest anew"),
    (r"transformers does not load what it saved", "transformers does not load what it saved"),
    (r"two runs give different outputs", "answers at random: two runs of the same model differ"),
    (r"no inputs are known|required positional|cannot be None", "needs inputs of its own"),
    (r"have to specify|must specify|has to be not-None", "needs inputs of its own"),
    (r"^does not run: ", "fails with the inputs that are known here"),
)  # fmt: skip
"""A pattern of what was raised, and what it means, the first that fits; {} stands for what the pattern caught."""

OTHER = "for another reason"


def in_words(reason: str) -> str:
    """Return what kind of reason an error is, in words.

    >>> in_words("is not built: at 62 million parameters it is too large")
    'is too large at the smallest sizes that build'
    """
    for pattern, words in REASONS:
        if found := re.search(pattern, reason):
            return words.format(next((group for group in found.groups() if group), ""))
    return OTHER


def counted(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """Return the kinds of some reasons with their numbers, the most frequent first."""
    return Counter(map(in_words, reasons)).most_common()
