"""A layer of the static cache whose old tokens lie in codes, as `CodedLayer`'s do, in buffers that stay where they are.

A step writes its token into a ring of the newest ones. Every GROUP tokens, between two steps, those that have left the
window are coded: the host knows when, so that captured steps need no such case. How many are coded is then a tensor
that the kernel reads.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from hlwq_kernels.attention import QuantizedKV, encode_kv, padded_dim

from .bits import KVBits
from .cache import GROUP, WINDOW, CodedStates, coded_tokens, seen_in_codes, token_tables
from .position import DecodePosition


class StaticKVStore:
    """Keys or values of one layer: codes for every position, and a ring of the newest exact tokens.

    The token at cache position p lies in slot p mod the ring's size.

    Args:
        bits: width of a code.
        states: (batch, heads, any, dim), an example of what is stored.
        capacity: positions to make room for.
    """

    def __init__(self, bits: int, states: torch.Tensor, capacity: int) -> None:
        batch, heads, _, dim = states.shape
        self.tables = token_tables(bits, states.device)
        self.codes = states.new_zeros(batch, heads, capacity, padded_dim(dim) * bits // 8, dtype=torch.uint8)
        self.scales = states.new_zeros(batch, heads, capacity, dtype=torch.uint8)
        self.ring = states.new_zeros(batch, heads, WINDOW + GROUP, dim)

    def keep_prompt(self, states: torch.Tensor, coded: int) -> QuantizedKV:
        """Store a prompt's states (batch, heads, tokens, dim), the first `coded` of them as codes."""
        if coded:
            self._code(states[:, :, :coded], 0)
        positions = torch.arange(coded, states.shape[2], device=states.device)
        self.ring.index_copy_(2, positions % self.ring.shape[2], states[:, :, coded:])
        return QuantizedKV(self.codes, self.scales, coded, states, 0, self.tables)

    def keep(self, state: torch.Tensor, position: DecodePosition) -> QuantizedKV:
        """Store the state (batch, heads, 1, dim) of a decode step."""
        self.ring.index_copy_(2, position.slots[self.ring.shape[2]], state)
        most = coded_tokens(position.length)
        return QuantizedKV(self.codes, self.scales, most, self.ring, most, self.tables, position.lengths)

    def code(self, start: int, stop: int) -> None:
        """Encode the tokens at positions `start` to `stop` from the ring."""
        positions = torch.arange(start, stop, device=self.ring.device)
        self._code(self.ring.index_select(2, positions % self.ring.shape[2]), start)

    def _code(self, states: torch.Tensor, start: int) -> None:
        stop = start + states.shape[2]
        self.codes[:, :, start:stop], self.scales[:, :, start:stop] = encode_kv(states, self.tables)


class CodedRingLayer(CacheLayerMixin):
    """Keys and values of one full-attention layer.

    Args:
        position: where decoding stands.
        capacity: positions to make room for.
        bits: widths of keys and values.
    """

    is_sliding = False
    size = WINDOW + GROUP

    def __init__(self, position: DecodePosition, capacity: int, bits: KVBits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.position, self.capacity, self.bits = position, capacity, bits

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the buffers, when the first keys show their shape."""
        self.key_store = StaticKVStore(self.bits.keys, key_states, self.capacity)
        self.value_store = StaticKVStore(self.bits.values, value_states, self.capacity)
        self.is_initialized = True

    def update(  # type: ignore[override]  # codes in place of tensors: `kv_attention` reads them
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[CodedStates, CodedStates]:
        """Keep new keys and values, and give those to attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        stores = ((self.key_store, key_states), (self.value_store, value_states))
        if self.position.prefilling:
            num_positions = key_states.shape[2]
            seen = seen_in_codes(0, num_positions)
            keys, values = (store.keep_prompt(states, coded_tokens(num_positions)) for store, states in stores)
        else:
            keys, values = (store.keep(state, self.position) for store, state in stores)
            seen = torch.tensor([keys.coded])
        return CodedStates(keys, seen), CodedStates(values, seen)

    def code(self, start: int, stop: int) -> None:
        """Encode the tokens at positions `start` to `stop`, which have left the window."""
        self.key_store.code(start, stop)
        self.value_store.code(start, stop)

    def reset(self) -> None:
        """Nothing: `DecodePosition.lengths` bounds what is read."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys of a prompt; a step brings its own mask."""
        self.position.refuse_in_step()
        return query_length, 0

    def get_seq_length(self) -> int:
        """Nothing, before the prompt."""
        self.position.refuse_in_step()
        return 0

    def get_max_length(self) -> int:
        """Return the capacity in positions."""
        return self.capacity
