"""A key/value cache in codes: full-attention layers hold codes, other layers stay as transformers makes them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache

from hlwq_kernels.attention import QuantizedKV

from ...errors import UnsupportedError
from ..transformers_private import DynamicLayer
from .bits import KVBits
from .coded_states import WINDOW, QuantizedLayer, coded_tokens, seen_in_codes
from .store import QuantizedKVStore


class CodedLayer(QuantizedLayer):
    """A growing cache layer whose old tokens are in codes.

    Args:
        bits: widths of keys and values.
        window: newest tokens that are always exact.
    """

    is_croppable = True

    def __init__(self, bits: KVBits, window: int = WINDOW) -> None:
        super().__init__(bits)
        if window < 1:
            raise UnsupportedError(f"A window of {window} exact tokens is too small.", "Use at least 1.")
        self.window = window
        self.length = self.coded = 0

    def make_store(self, bits: int, states: torch.Tensor) -> QuantizedKVStore:
        """Return an empty store for keys or values like `states`."""
        return QuantizedKVStore(bits, states, self.window)

    def append(
        self, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[QuantizedKV, QuantizedKV, torch.Tensor]:
        """Append tokens; encode those that have left the window."""
        new = key_states.shape[-2]
        after = max(self.coded, coded_tokens(self.length + new, self.window))
        seen = seen_in_codes(self.length, new, self.window, self.coded)
        keys = self.key_store.append(key_states.detach(), self.length, self.coded, after)
        values = self.value_store.append(value_states.detach(), self.length, self.coded, after)
        self.length, self.coded = self.length + new, after
        return keys, values, seen

    def get_seq_length(self) -> int:
        """Return the number of cached tokens."""
        return self.length

    def get_max_length(self) -> int:
        """Return -1: there is no maximum."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the tokens that `query_length` new ones will see."""
        return self.length + query_length, 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated, spare capacity included."""
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
        """Drop all tokens and free their memory."""
        if self.is_initialized:
            del self.key_store, self.value_store
        self.is_initialized, self.length, self.coded = False, 0, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens; the remaining ones stay in codes or exact, as they were.

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
        """Let each sequence continue from the tokens of sequence `beam_idx`."""
        self._map(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times."""
        self._map(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these sequences."""
        self._map(lambda x: x[indices.to(x.device)])

    def _map(self, change: Any) -> None:
        if self.is_initialized:
            self.key_store.map_batch(change)
            self.value_store.map_batch(change)


def coded_cache(config: Any, bits: KVBits, window: int = WINDOW) -> Cache:
    """Return an empty cache: codes in full-attention layers, transformers' own layers elsewhere.

    Raises:
        UnsupportedError: the model has no full-attention layer.
    """
    layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
    coded = [CodedLayer(bits, window) if type(layer) is DynamicLayer else layer for layer in layers]
    if not any(isinstance(layer, CodedLayer) for layer in coded):
        raise UnsupportedError("This model has no full-attention layer, so there is nothing to quantize in its cache.")
    return Cache(layers=coded)
