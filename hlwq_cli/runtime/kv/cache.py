"""A key/value cache in codes: the layers of a transformers `Cache` that see everything hold codes, the others stay.

A token is coded once, when it is old enough, and never again. How many tokens are coded depends on the length alone
(`coded_tokens`), and a query sees exactly those in codes that were coded when it was the newest token: so a text reads
the same in one piece, in several, or token by token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from hlwq_kernels.attention import KVTables, QuantizedKV, encode_kv, padded_dim

from ...codec.codebook import lloyd_max
from ...errors import UnsupportedError
from .bits import KVBits

WINDOW = 64
"""The newest tokens that are always exact, by default."""
GROUP = 32
"""Tokens are coded so many at once: up to GROUP - 1 more than the window are exact."""


def coded_tokens(length: int, window: int = WINDOW) -> int:
    """How many of `length` tokens lie in codes: all but the window, in whole groups."""
    return max(0, (length - window) // GROUP * GROUP)


def seen_in_codes(length: int, new: int, window: int = WINDOW, coded: int = 0) -> torch.Tensor:
    """How many tokens each of `new` ones behind `length` sees in codes, `coded` at least: int64 (new,)."""
    lengths = torch.arange(length + 1, length + new + 1)
    return ((lengths - window) // GROUP * GROUP).clamp(min=coded)


@lru_cache(maxsize=None)
def token_tables(bits: int, device: torch.device) -> KVTables:
    """The project's codebook, on a device."""
    return KVTables.of(lloyd_max(bits), device)


@dataclass(frozen=True)
class CodedStates:
    """What `CodedLayer.update` returns in place of a dense tensor: keys or values, for `kv_attention` to read.

    Attributes:
        tokens: the codes and the exact tokens.
        seen: int64 (new tokens,): how many tokens each new one sees in codes.
    """

    tokens: QuantizedKV
    seen: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the dense tensor: (batch, heads, tokens, dim)."""
        return torch.Size((*self.tokens.codes.shape[:2], self.tokens.length, self.tokens.dim))

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's activations."""
        return self.tokens.exact.dtype

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.tokens.exact.device


def _lasting(method: Callable[..., Any]) -> Callable[..., Any]:
    """What is allocated within may be written later, in inference mode or out of it."""
    return torch.inference_mode(False)(torch.no_grad()(method))


class QuantizedKVStore:
    """Keys or values of a layer: a growing store of codes and a tail of exact tokens.

    Args:
        bits: width of a code.
        states: (batch, heads, any, dim): what is to come looks like this.
        window: newest tokens that are always exact.
    """

    @_lasting
    def __init__(self, bits: int, states: torch.Tensor, window: int) -> None:
        batch, heads, _, dim = states.shape
        self.tables = token_tables(bits, states.device)
        self.codes = torch.empty(batch, heads, 0, padded_dim(dim) * bits // 8, dtype=torch.uint8, device=states.device)
        self.scales = torch.empty(batch, heads, 0, dtype=torch.uint8, device=states.device)
        self.tail = states.new_empty(batch, heads, window + GROUP, dim)

    @property
    def token_bytes(self) -> int:
        """Bytes of one coded token of one sequence."""
        return self.codes.shape[1] * (self.codes.shape[-1] + 1)

    @property
    def dense_token_bytes(self) -> int:
        """Bytes of one exact token of one sequence."""
        return self.tail.shape[1] * self.tail.shape[-1] * self.tail.element_size()

    @property
    def nbytes(self) -> int:
        """Bytes held, room to grow included."""
        return self.codes.nbytes + self.scales.nbytes + self.tail.nbytes

    def append(self, new: torch.Tensor, length: int, before: int, after: int) -> QuantizedKV:
        """Add tokens behind the `length` that are there, of which `before` are coded and `after` are to be then."""
        kept = length - before
        if kept + new.shape[-2] <= self.tail.shape[-2]:
            exact = self.tail[:, :, : kept + new.shape[-2]]
            exact[:, :, kept:] = new
        else:
            exact = torch.cat([self.tail[:, :, :kept], new], dim=-2)
        if after > before:
            self._code(exact[:, :, : after - before], before, after)
            exact = exact.clone() if exact.data_ptr() == self.tail.data_ptr() else exact
            left = exact[:, :, after - before :]
            self.tail[:, :, : left.shape[-2]] = left
        return QuantizedKV(self.codes, self.scales, after, exact, before, self.tables)

    def _code(self, tokens: torch.Tensor, start: int, stop: int) -> None:
        self._make_room(stop)
        self.codes[:, :, start:stop], self.scales[:, :, start:stop] = encode_kv(tokens, self.tables)

    def _make_room(self, tokens: int) -> None:
        """Room for so many, and when growing for an eighth more than there was, so that copies stay rare."""
        capacity = self.scales.shape[-1]
        if tokens > capacity:
            grown = max(tokens, capacity + max(256, capacity // 8 // GROUP * GROUP) if capacity else tokens)
            self.codes, self.scales = _grown(self.codes, grown), _grown(self.scales, grown)

    @_lasting
    def map_batch(self, change: Any) -> None:
        """Replace every tensor by what `change` makes of it."""
        self.codes, self.scales, self.tail = change(self.codes), change(self.scales), change(self.tail)


@_lasting
def _grown(x: torch.Tensor, tokens: int) -> torch.Tensor:
    bigger = x.new_empty(*x.shape[:2], tokens, *x.shape[3:])
    bigger[:, :, : x.shape[2]] = x
    return bigger


class CodedLayer(CacheLayerMixin):
    """A cache layer whose old tokens lie in codes.

    Args:
        bits: widths of keys and values.
        window: newest tokens that are always exact.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, bits: KVBits, window: int = WINDOW) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if window < 1:
            raise UnsupportedError(f"A window of {window} exact tokens is too small.", "Use at least 1.")
        self.bits, self.window = bits, window
        self.length = self.coded = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the empty stores."""
        self.device = key_states.device
        self.key_store = QuantizedKVStore(self.bits.keys, key_states, self.window)
        self.value_store = QuantizedKVStore(self.bits.values, value_states, self.window)
        self.is_initialized = True

    def update(  # type: ignore[override]  # codes in place of tensors: `kv_attention` reads them
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[CodedStates, CodedStates]:
        """Append tokens (batch, heads, tokens, dim); what is old enough is coded."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[-2]
        after = max(self.coded, coded_tokens(self.length + new, self.window))
        seen = seen_in_codes(self.length, new, self.window, self.coded)
        keys = self.key_store.append(key_states.detach(), self.length, self.coded, after)
        values = self.value_store.append(value_states.detach(), self.length, self.coded, after)
        self.length, self.coded = self.length + new, after
        return CodedStates(keys, seen), CodedStates(values, seen)

    def get_seq_length(self) -> int:
        """Tokens cached."""
        return self.length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the tokens that `query_length` new ones will see."""
        return self.length + query_length, 0

    @property
    def nbytes(self) -> int:
        """Bytes held, room to grow included."""
        return self.key_store.nbytes + self.value_store.nbytes if self.is_initialized else 0

    @property
    def token_bytes(self) -> int:
        """Bytes of one coded token of one sequence; 0 before the first."""
        return self.key_store.token_bytes + self.value_store.token_bytes if self.is_initialized else 0

    @property
    def dense_token_bytes(self) -> int:
        """Bytes of one exact token of one sequence; 0 before the first."""
        return self.key_store.dense_token_bytes + self.value_store.dense_token_bytes if self.is_initialized else 0

    def reset(self) -> None:
        """Forget all tokens, and give the memory back."""
        if self.is_initialized:
            del self.key_store, self.value_store
        self.is_initialized, self.length, self.coded = False, 0, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens. Of those that were coded, what remains stays in codes.

        Args:
            tokens_to_remove: how many, as a negative number; a positive one is the length to keep, as in older
                versions of transformers.
        """
        keep = self.length + tokens_to_remove if tokens_to_remove <= 0 else min(tokens_to_remove, self.length)
        if keep <= 0:
            self.reset()
            return
        self.length, self.coded = keep, min(self.coded, keep)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let each sequence go on from another's tokens."""
        self._map(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence `repeats` times."""
        self._map(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences only."""
        self._map(lambda x: x[indices.to(x.device)])

    def _map(self, change: Any) -> None:
        if self.is_initialized:
            self.key_store.map_batch(change)
            self.value_store.map_batch(change)


def coded_cache(config: Any, bits: KVBits, window: int = WINDOW) -> Cache:
    """An empty cache for a model: codes in its full-attention layers, transformers' own layers elsewhere.

    Raises:
        UnsupportedError: the model has no layer that attends to everything.
    """
    layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
    coded = [CodedLayer(bits, window) if type(layer) is DynamicLayer else layer for layer in layers]
    if not any(isinstance(layer, CodedLayer) for layer in coded):
        raise UnsupportedError("None of this model's layers keeps all tokens: there is nothing to code.")
    return Cache(layers=coded)
