"""Models and tokenizers with known outputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from hlwq_cli.measure.windows import Protocol, Windows


class TableModel(nn.Module):
    """A model whose logits depend only on the last token `t`: row `t` of a (vocabulary, vocabulary) table."""

    device = torch.device("cpu")
    config = SimpleNamespace(vision_config=None)

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        assert not use_cache
        return SimpleNamespace(logits=self.table[input_ids])


class Letters:
    """A tokenizer with one id per letter, from 3 for `a`; with `bos` it adds BOS, 1, before every text."""

    def __init__(self, bos: bool) -> None:
        self.bos_token_id, self.adds = 1, bos

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        ids = [ord(c) - ord("a") + 3 for c in text]
        return {"input_ids": [1, *ids] if self.adds and add_special_tokens else ids}


def windows(ids: list[list[int]], first: int = 1) -> Windows:
    """Return windows of the given tokens."""
    rows = torch.tensor(ids)
    size = rows.shape[1]
    return Windows(rows, first, Protocol("paper", size, len(rows), size - first, False, "made up", "0" * 64))
