"""How many tokens a model can read at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .classes import model_class
from .config import text_config

_KEYS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_target_positions")
_LONGEST = 10**9
"""More positions than this stand for a context without a limit."""
_RESERVED = 16
"""At most this many of the stated positions are not for tokens: RoBERTa's positions begin after the padding token."""


@dataclass(frozen=True)
class Context:
    """The longest text that a model can read.

    Attributes:
        tokens: its length.
        is_hard: whether the model has a table of positions, and so fails on a longer text. Other models read it, with
            positions that they were not trained on.
    """

    tokens: int
    is_hard: bool


def context_of(model: Any) -> Context | None:
    """Return the context of a model; None if its config states none, or none that makes sense."""
    stated = _stated(model.config)
    if stated is None:
        return None
    usable = [rows for rows in _position_rows(model) if stated - _RESERVED <= rows <= stated]
    return Context(min(usable), True) if usable else Context(stated, False)


def context_for(config: Any, tokens: int) -> Context | None:
    """Return the context of a config's model where it is shorter than `tokens`, else None; no weights are read."""
    stated = _stated(config)
    if stated is None or tokens <= stated - _RESERVED:
        return None
    try:
        with torch.device("meta"):
            found = context_of(model_class(config)(config))
    except Exception:  # a class may fail to build from a config in any way; then loading says so
        found = Context(stated, False)
    return found if found is not None and found.tokens < tokens else None


def _stated(config: Any) -> int | None:
    for key in _KEYS:
        value = getattr(text_config(config), key, None)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _LONGEST:
            return int(value)
    return None


def _position_rows(model: Any) -> Iterator[int]:
    """Yield the number of tokens that each table of positions has rows for."""
    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        if isinstance(module, nn.Embedding) and ("pos" in name or name == "wpe"):
            yield module.num_embeddings - _first_position(model.get_submodule(parent), module)
        for name, buffer in module.named_buffers(recurse=False):
            if "pos" in name and buffer.ndim > 1:
                yield buffer.shape[0]


def _first_position(parent: nn.Module, table: nn.Embedding) -> int:
    """Return the number of rows without a token: BART has an offset, RoBERTa leaves out those up to the padding token.

    ProphetNet also looks up the position after the last token.
    """
    if type(table).__name__ == "ProphetNetPositionalEmbeddings" and table.padding_idx is not None:
        return table.padding_idx + 2
    if hasattr(parent, "create_position_ids_from_input_ids") and table.padding_idx is not None:
        return table.padding_idx + 1
    return int(getattr(table, "offset", 0))
