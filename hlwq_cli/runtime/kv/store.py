"""A growing store of keys or values, old tokens in codes and the newest ones exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hlwq_kernels.attention import QuantizedKV, encode_kv, padded_dim

from .coded_states import GROUP, kv_tables


def _lasting(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let tensors that a method allocates be written later, in inference mode or out of it."""
    return torch.inference_mode(False)(torch.no_grad()(method))


class QuantizedKVStore:
    """Keys or values of a layer: a growing store of codes, and a tail of exact tokens.

    Args:
        bits: width of a code.
        states: (batch, heads, any, dim), an example of what is stored.
        window: newest tokens that are always exact.

    Attributes:
        codes: uint8 (batch, heads, capacity, bytes of a token).
        scales: uint8 (batch, heads, capacity).
        tail: (batch, heads, window + GROUP, dim), the exact tokens, in the model's dtype.
    """

    @_lasting
    def __init__(self, bits: int, states: torch.Tensor, window: int) -> None:
        batch, heads, _, dim = states.shape
        self.tables = kv_tables(bits, states.device)
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
        """Bytes allocated, spare capacity included."""
        return self.codes.nbytes + self.scales.nbytes + self.tail.nbytes

    def append(self, new: torch.Tensor, length: int, before: int, after: int) -> QuantizedKV:
        """Add tokens (batch, heads, tokens, dim) and return what attention reads.

        Args:
            new: the tokens.
            length: tokens stored so far.
            before: how many of those are in codes.
            after: how many are in codes afterwards.
        """
        exact_before = length - before
        if exact_before + new.shape[-2] <= self.tail.shape[-2]:
            exact = self.tail[:, :, : exact_before + new.shape[-2]]
            exact[:, :, exact_before:] = new
        else:
            exact = torch.cat([self.tail[:, :, :exact_before], new], dim=-2)
        if after > before:
            self._code(exact[:, :, : after - before], before, after)
            exact = exact.clone() if exact.data_ptr() == self.tail.data_ptr() else exact
            left = exact[:, :, after - before :]
            self.tail[:, :, : left.shape[-2]] = left
        return QuantizedKV(self.codes, self.scales, after, exact, before, self.tables)

    def _code(self, tokens: torch.Tensor, start: int, stop: int) -> None:
        self._reserve(stop)
        self.codes[:, :, start:stop], self.scales[:, :, start:stop] = encode_kv(tokens, self.tables)

    def _reserve(self, tokens: int) -> None:
        """Make room for `tokens` codes; grow by at least an eighth, so that copies stay rare."""
        capacity = self.scales.shape[-1]
        if tokens > capacity:
            grown = max(tokens, capacity + max(256, capacity // 8 // GROUP * GROUP) if capacity else tokens)
            self.codes, self.scales = _grown(self.codes, grown), _grown(self.scales, grown)

    @_lasting
    def map_batch(self, change: Any) -> None:
        """Replace every tensor by `change` of it."""
        self.codes, self.scales, self.tail = change(self.codes), change(self.scales), change(self.tail)


@_lasting
def _grown(x: torch.Tensor, tokens: int) -> torch.Tensor:
    bigger = x.new_empty(*x.shape[:2], tokens, *x.shape[3:])
    bigger[:, :, : x.shape[2]] = x
    return bigger
