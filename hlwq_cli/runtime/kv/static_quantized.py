"""A layer of the static cache whose old tokens are in codes, in buffers that stay where they are.

A decode step writes its token into a ring of the newest tokens. Every GROUP tokens, between two steps, those that have
left the window are encoded. The host knows when, so that captured steps need no branch for it. How many are in codes is
a tensor that the kernel reads.
"""

from __future__ import annotations

import torch

from hlwq_kernels.attention import QuantizedKV, encode_kv, padded_dim

from .bits import KVBits
from .coded_states import GROUP, WINDOW, QuantizedLayer, coded_tokens, kv_tables, seen_in_codes
from .position import DecodePosition, StaticLengths


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
        self.tables = kv_tables(bits, states.device)
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


class CodedRingLayer(StaticLengths, QuantizedLayer):
    """Keys and values of one full-attention layer.

    Args:
        position: where decoding stands.
        capacity: positions to make room for.
        bits: widths of keys and values.

    Attributes:
        size: slots of the ring of exact tokens.
    """

    size = WINDOW + GROUP

    def __init__(self, position: DecodePosition, capacity: int, bits: KVBits) -> None:
        super().__init__(bits)
        self.position, self.max_length = position, capacity

    def make_store(self, bits: int, states: torch.Tensor) -> StaticKVStore:
        """Return an empty store for keys or values like `states`."""
        return StaticKVStore(bits, states, self.max_length)

    def append(
        self, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[QuantizedKV, QuantizedKV, torch.Tensor]:
        """Store a prompt, or the token of a decode step."""
        stores = ((self.key_store, key_states), (self.value_store, value_states))
        if self.position.prefilling:
            tokens = key_states.shape[2]
            seen = seen_in_codes(0, tokens)
            keys, values = (store.keep_prompt(states, coded_tokens(tokens)) for store, states in stores)
        else:
            keys, values = (store.keep(state, self.position) for store, state in stores)
            seen = torch.tensor([keys.coded])
        return keys, values, seen

    def code(self, start: int, stop: int) -> None:
        """Encode the tokens at positions `start` to `stop`, which have left the window."""
        self.key_store.code(start, stop)
        self.value_store.code(start, stop)

    def reset(self) -> None:
        """Do nothing: `DecodePosition.lengths` bounds what is read."""
