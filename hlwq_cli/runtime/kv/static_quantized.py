"""A layer of the static cache whose old tokens lie in codes, as `CodedLayer`'s do, in buffers that stay where they are.

A step writes its token into a ring of the newest ones. Every GROUP tokens, between two steps, those that have left the
window are coded: the host knows when, so that captured steps need no such case. How many are coded is then a tensor
that the kernel reads.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from hlwq_kernels.attention.dispatch import QuantizedKV
from hlwq_kernels.attention.kv_encode import encode_kv, padded_dim

from .bits import KVBits
from .cache import GROUP, WINDOW, CodedStates, coded_tokens, seen_in_codes, token_tables
from .position import Place


class _Side:
    """Keys or values: codes for every column, and the ring, in which column c lies in place c mod its size."""

    def __init__(self, bits: int, states: torch.Tensor, capacity: int) -> None:
        batch, heads, _, dim = states.shape
        self.tables = token_tables(bits, states.device)
        self.codes = states.new_zeros(batch, heads, capacity, padded_dim(dim) * bits // 8, dtype=torch.uint8)
        self.scales = states.new_zeros(batch, heads, capacity, dtype=torch.uint8)
        self.ring = states.new_zeros(batch, heads, WINDOW + GROUP, dim)

    def keep_prompt(self, states: torch.Tensor, coded: int) -> QuantizedKV:
        if coded:
            self._code(states[:, :, :coded], 0)
        columns = torch.arange(coded, states.shape[2], device=states.device)
        self.ring.index_copy_(2, columns % self.ring.shape[2], states[:, :, coded:])
        return QuantizedKV(self.codes, self.scales, coded, states, 0, self.tables)

    def keep(self, state: torch.Tensor, place: Place) -> QuantizedKV:
        self.ring.index_copy_(2, place.slots[self.ring.shape[2]], state)
        most = coded_tokens(place.length)
        return QuantizedKV(self.codes, self.scales, most, self.ring, most, self.tables, place.lengths)

    def code(self, start: int, stop: int) -> None:
        columns = torch.arange(start, stop, device=self.ring.device)
        self._code(self.ring.index_select(2, columns % self.ring.shape[2]), start)

    def _code(self, states: torch.Tensor, start: int) -> None:
        stop = start + states.shape[2]
        self.codes[:, :, start:stop], self.scales[:, :, start:stop] = encode_kv(states, self.tables)


class CodedRingLayer(CacheLayerMixin):
    """Keys and values of one layer that sees every column.

    Args:
        place: where decoding stands.
        capacity: columns.
        bits: widths of keys and values.
    """

    is_sliding = False
    size = WINDOW + GROUP

    def __init__(self, place: Place, capacity: int, bits: KVBits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place, self.capacity, self.bits = place, capacity, bits

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the buffers, when the first keys show their shape."""
        self.key_side = _Side(self.bits.keys, key_states, self.capacity)
        self.value_side = _Side(self.bits.values, value_states, self.capacity)
        self.is_initialized = True

    def update(  # type: ignore[override]  # codes in place of tensors: `kv_attention` reads them
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[CodedStates, CodedStates]:
        """Keep new keys and values, and give those to attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        sides = ((self.key_side, key_states), (self.value_side, value_states))
        if self.place.prefilling:
            columns = key_states.shape[2]
            seen = seen_in_codes(0, columns)
            keys, values = (side.keep_prompt(states, coded_tokens(columns)) for side, states in sides)
        else:
            keys, values = (side.keep(state, self.place) for side, state in sides)
            seen = torch.tensor([keys.coded])
        return CodedStates(keys, seen), CodedStates(values, seen)

    def code(self, start: int, stop: int) -> None:
        """Code columns that have left the window."""
        self.key_side.code(start, stop)
        self.value_side.code(start, stop)

    def reset(self) -> None:
        """Nothing: what is beyond the place's lengths is never read."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys of a prompt; a step brings its own mask."""
        self.place.refuse_in_step()
        return query_length, 0

    def get_seq_length(self) -> int:
        """Nothing, before the prompt."""
        self.place.refuse_in_step()
        return 0

    def get_max_length(self) -> int:
        """Columns."""
        return self.capacity
