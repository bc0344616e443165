"""The cached keys or the cached values of a layer: older tokens are quantized, the newest are exact."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..codes import unpack_codes
from ..linear import rotate_activation
from .kv_tables import KVTables, rotation_block


class QuantizedKV(NamedTuple):
    """Keys or values of a layer.

    Attributes:
        codes: uint8 (batch, heads, capacity, padded * bits / 8).
        scales: uint8 (batch, heads, capacity).
        coded: number of quantized tokens, from position 0 on.
        exact: (batch, heads, tokens, dim), the newest tokens, unchanged.
        first: position of the first exact token, at most `coded`.
        tables: the codebook, on the device of the codes.
        lengths: None; or int64 (2,) on that device, the numbers of quantized and of exact tokens, where only the device
            knows them. Then `coded` and `first` are upper bounds, and `exact` is a ring: the token at position p is at
            index p mod its size.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    coded: int
    exact: torch.Tensor
    first: int
    tables: KVTables
    lengths: torch.Tensor | None = None

    @classmethod
    def dense(cls, states: torch.Tensor) -> QuantizedKV:
        """Return tokens (batch, heads, tokens, dim) without quantizing any."""
        none = torch.empty(*states.shape[:2], 0, dtype=torch.uint8, device=states.device)
        return cls(none[..., None], none, 0, states, 0, KVTables.of((-1.0, 1.0), states.device))

    @property
    def dim(self) -> int:
        """Values of a head."""
        return self.exact.shape[-1]

    @property
    def length(self) -> int:
        """The number of cached tokens."""
        return self.first + self.exact.shape[-2]

    def resolved(self) -> QuantizedKV:
        """Return the same with `lengths` read from the device, which waits for it, and exact tokens in order."""
        if self.lengths is None:
            return self
        coded, exact = self.lengths.tolist()
        indices = torch.arange(coded, coded + exact, device=self.exact.device) % self.exact.shape[2]
        return self._replace(coded=coded, first=coded, exact=self.exact.index_select(2, indices), lengths=None)

    def rotated(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Decode tokens `start` .. `stop` - 1, still rotated: (batch, heads, tokens, padded)."""
        return decode_rotated(self.codes[:, :, start:stop], self.scales[:, :, start:stop], self.tables, dtype)

    def exact_slice(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the exact tokens `start` .. `stop` - 1: (batch, heads, tokens, dim)."""
        return self.exact[:, :, start - self.first : stop - self.first].to(dtype)

    def decoded(self) -> torch.Tensor:
        """Decode all tokens to float32 (batch, heads, length, dim); the newest are exact."""
        quantized = rotate_heads(self.rotated(0, self.coded, torch.float32), self.dim)[..., : self.dim]
        return torch.cat([quantized, self.exact_slice(self.coded, self.length, torch.float32)], dim=-2)


def decode_rotated(
    codes: torch.Tensor, scales: torch.Tensor, tables: KVTables, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Decode all but the rotation: (..., padded), of `dtype`."""
    values = tables.centroids[unpack_codes(codes, tables.bits).to(torch.int32)]
    return (values * tables.scales[scales.to(torch.int32)][..., None]).to(dtype)


def rotate_heads(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Rotate heads of `dim` values, padded or not, to float32 (..., padded). The rotation is its own inverse."""
    return rotate_activation(x.to(torch.float32), rotation_block(dim))


def decode_kv(codes: torch.Tensor, scales: torch.Tensor, tables: KVTables, dim: int) -> torch.Tensor:
    """Decode heads to float32 (..., dim)."""
    return rotate_heads(decode_rotated(codes, scales, tables), dim)[..., :dim]
