"""What the cache layers that hold codes share: which tokens are in codes, and what attention gets to read.

A token is encoded once, when it is old enough, and never again. How many tokens are in codes depends on the length
alone (`coded_tokens`). A query sees in codes exactly the tokens that were in codes when it was the newest token: so a
text reads the same in one piece, in several, or token by token.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from hlwq_kernels.attention import KVTables, QuantizedKV

from ...codec import lloyd_max
from ..transformers_private import CacheLayerMixin
from .bits import KVBits

WINDOW = 64
"""Newest tokens that are always exact, by default."""
GROUP = 32
"""Tokens that are encoded at once: up to GROUP - 1 more than the window are exact."""


def coded_tokens(length: int, window: int = WINDOW) -> int:
    """Return how many of `length` tokens are in codes: all but the window, in whole groups."""
    return max(0, (length - window) // GROUP * GROUP)


def seen_in_codes(length: int, new: int, window: int = WINDOW, coded: int = 0) -> torch.Tensor:
    """Return how many tokens each of `new` ones after `length` sees in codes, at least `coded`: int64 (new,)."""
    lengths = torch.arange(length + 1, length + new + 1)
    return ((lengths - window) // GROUP * GROUP).clamp(min=coded)


@lru_cache(maxsize=None)
def kv_tables(bits: int, device: torch.device) -> KVTables:
    """Return the tables of the Lloyd-Max codebook of a width, on a device."""
    return KVTables.of(lloyd_max(bits), device)


@dataclass(frozen=True)
class CodedStates:
    """Keys or values that a cache layer returns in place of a dense tensor, for `kv_attention` to read.

    Attributes:
        tokens: the codes and the exact tokens.
        seen: int64 (new tokens,): how many tokens each new one sees in codes.
    """

    tokens: QuantizedKV
    seen: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape of the dense tensor, (batch, heads, tokens, dim)."""
        return torch.Size((*self.tokens.codes.shape[:2], self.tokens.length, self.tokens.dim))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's activations."""
        return self.tokens.exact.dtype

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.tokens.exact.device


class QuantizedLayer(CacheLayerMixin):
    """A cache layer with one store for keys and one for values, whose old tokens are in codes.

    Args:
        bits: widths of keys and values.
    """

    is_sliding = False

    def __init__(self, bits: KVBits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bits = bits

    @abstractmethod
    def make_store(self, bits: int, states: torch.Tensor) -> Any:
        """Return an empty store for keys or values like `states` (batch, heads, any, dim)."""

    @abstractmethod
    def append(
        self, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[QuantizedKV, QuantizedKV, torch.Tensor]:
        """Store tokens (batch, heads, tokens, dim); return keys, values and how many codes each new token sees."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the stores, once the first keys show their shape."""
        self.device = key_states.device
        self.key_store = self.make_store(self.bits.keys, key_states)
        self.value_store = self.make_store(self.bits.values, value_states)
        self.is_initialized = True

    def update(  # type: ignore[override]  # codes in place of tensors: `kv_attention` reads them
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[CodedStates, CodedStates]:
        """Store tokens (batch, heads, tokens, dim) and return what attention reads; old tokens are encoded."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values, seen = self.append(key_states, value_states)
        return CodedStates(keys, seen), CodedStates(values, seen)
