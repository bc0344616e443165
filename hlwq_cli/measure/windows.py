"""Protocols of perplexity: how a text is cut into windows, and which of their tokens are scored.

Three protocols give 5.47, 5.80 and 8.71 for one model, so every report states its protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..errors import UsageError
from ..runtime.loading import bos_token
from .text import Text

ProtocolName = Literal["paper", "llama.cpp"]
_DEFAULT_WINDOW = {"paper": 2048, "llama.cpp": 512}
_SHORTEST = 4


@dataclass(frozen=True)
class Protocol:
    """How a text was measured.

    Attributes:
        name: `paper`: windows side by side, every token but the first is scored. `llama.cpp`: windows side by side,
            the second half is scored, and BOS replaces the first token if the tokenizer adds BOS.
        window: tokens per window, BOS included.
        windows: number of windows.
        scored: scored tokens per window.
        bos: whether each window begins with BOS, which is so if the tokenizer adds it.
        text: name of the text.
        text_sha256: sha256 of the text.
        context: the shortest context of the models, if the windows were cut to it or are longer than it; else None.
    """

    name: ProtocolName
    window: int
    windows: int
    scored: int
    bos: bool
    text: str
    text_sha256: str
    context: int | None = None

    @property
    def line(self) -> str:
        """The protocol in one line; figures are comparable only if these lines are equal."""
        bos = "BOS once a window" if self.bos else "no BOS"
        return (
            f"protocol {self.name}: {self.text} (sha256 {self.text_sha256[:12]}), {self.windows} windows of "
            f"{self.window}{self._of_context}, {self.scored} scored in each, no overlap, {bos}, token-weighted"
        )

    @property
    def _of_context(self) -> str:
        if self.context is None:
            return ""
        how = "cut to" if self.window <= self.context else "past"
        return f" ({how} the context of {self.context:,})"


@dataclass(frozen=True)
class Windows:
    """Token windows, and the first position whose prediction is scored.

    Attributes:
        ids: int64 (windows, window).
        first: predictions of tokens `first` .. window - 1 are scored.
        protocol: how the windows were made.
    """

    ids: torch.Tensor
    first: int
    protocol: Protocol


def window_size(name: ProtocolName, window: int | None = None) -> int:
    """Return the tokens in a window: as given, or the protocol's default.

    Raises:
        UsageError: the protocol is unknown, or the window is too short.
    """
    if name not in _DEFAULT_WINDOW:
        raise UsageError(f"--protocol must be {' or '.join(_DEFAULT_WINDOW)}, not {name!r}.")
    size = _DEFAULT_WINDOW[name] if window is None else window
    if size < _SHORTEST:
        raise UsageError(f"A window of {size} tokens is too short.", f"Use at least {_SHORTEST}.")
    return size


def make_windows(
    text: Text,
    tokenizer: Any,
    name: ProtocolName = "paper",
    window: int | None = None,
    limit: int | None = None,
    context: int | None = None,
) -> Windows:
    """Cut a text into windows.

    Args:
        text: the text.
        tokenizer: tokenizer of the model.
        name: name of the protocol.
        window: tokens per window; None means the protocol's default.
        limit: maximum number of windows.
        context: a context that is shorter than such a window. The protocol's default is cut to it; a given window is
            not.

    Raises:
        UsageError: the protocol is unknown, the window is too short, or the text is shorter than one window.
    """
    size = window_size(name, context if window is None and context is not None else window)
    bos = bos_token(tokenizer)
    tokens = torch.tensor(tokenizer(text.text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    if name == "paper" and bos is not None:
        rows = _rows(tokens, size, text, bos_tokens=1)
        ids = torch.cat([torch.full((len(rows), 1), bos), rows], dim=1)
    else:
        if bos is not None:  # as llama.cpp: the text's tokens begin with BOS, and each window's first token becomes it
            tokens = torch.cat([torch.tensor([bos]), tokens])
        ids = _rows(tokens, size, text).clone()
        if bos is not None:
            ids[:, 0] = bos
    ids = ids[:limit]
    first = 1 if name == "paper" else size // 2 + 1
    protocol = Protocol(name, size, len(ids), size - first, bos is not None, text.name, text.sha256, context)
    return Windows(ids, first, protocol)


def _rows(tokens: torch.Tensor, window: int, text: Text, bos_tokens: int = 0) -> torch.Tensor:
    """Cut tokens into rows: (windows, window - bos_tokens)."""
    size = window - bos_tokens
    count = len(tokens) // size
    if count == 0:
        raise UsageError(
            f"{text.name} has {len(tokens)} tokens, fewer than a window of {window}.", "Use a longer text or --window."
        )
    return tokens[: count * size].view(count, size)
