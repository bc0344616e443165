"""Rows of a dataset on the Hub, named as `DATASET[:CONFIG[:SPLIT]]`."""

from __future__ import annotations

from typing import Any

from .errors import NotFoundError


def open_dataset(spec: str, default_split: str, instead: str, *, streaming: bool = False) -> Any:
    """Open a dataset with the `datasets` library.

    Args:
        spec: `DATASET[:CONFIG[:SPLIT]]`.
        default_split: the split of a spec without one.
        instead: a hint: what to give if the dataset cannot be loaded.
        streaming: fetch rows when they are read, instead of the whole dataset first.

    Raises:
        NotFoundError: the dataset cannot be loaded.
    """
    from datasets import load_dataset

    repo, _, rest = spec.partition(":")
    config, _, split = rest.partition(":")
    try:
        return load_dataset(repo, config or None, split=split or default_split, streaming=streaming)
    except Exception as error:
        raise NotFoundError(f"The dataset {spec} cannot be loaded: {type(error).__name__}.", instead) from error
