"""Attention over quantized keys and values in torch: they are decoded tile by tile, with a running softmax.

q . (H k) = (H q) . k, so queries are rotated once and keys never. Sums of rotated values are rotated back once. All
quantized tokens are read first, then the sums are rotated back, then the exact tokens are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .kv_states import QuantizedKV, rotate_heads
from .kv_tables import padded_dim

_LOGITS_AT_ONCE = 2**24
"""Logits that are held at once; bounds memory. Not measured."""
_TILE = 512
"""Tokens that are decoded at once for several queries. Not measured."""
_TILE_FOR_ONE = 4096
"""Tokens that are decoded at once for one query, whose logits take little memory. Not measured."""


@dataclass(frozen=True)
class AttentionParams:
    """What the attention of a model does to logits, and what queries may see.

    Attributes:
        scaling: factor of logits.
        softcap: logits become softcap * tanh(logits / softcap); 0 is none.
        mask: (batch or 1, query heads or 1, queries or 1, tokens): boolean, true where allowed; or added to logits.
        causal: without a mask, a query sees the tokens up to its own position.
    """

    scaling: float
    softcap: float = 0.0
    mask: torch.Tensor | None = None
    causal: bool = True


def attend_reference(
    query: torch.Tensor, keys: QuantizedKV, values: QuantizedKV, seen: torch.Tensor, params: AttentionParams
) -> torch.Tensor:
    """Compute attention of the newest tokens over all cached tokens.

    Args:
        query: (batch, query heads, queries, dim), of the last `queries` positions.
        keys: of fewer heads, each shared by the same number of query heads.
        values: likewise.
        seen: int64 (queries,), on the CPU, ascending: how many of the oldest tokens each query sees quantized; it sees
            the others exactly.
        params: scaling, masks.

    Returns:
        (batch, query heads, queries, dim of values), of the query's dtype. Queries that may see nothing get zeros.
    """
    dtype = query.dtype if query.is_cuda else torch.promote_types(query.dtype, torch.float32)
    grouped = query.unflatten(1, (keys.codes.shape[1], -1))
    sums = _Sums(grouped, keys, values, params)
    coded = int(seen[-1]) if len(seen) else 0
    if coded:
        sums.read_codes(rotate_heads(grouped, keys.dim).to(dtype), coded, seen)
    if keys.coded:
        sums.total = rotate_heads(sums.total, values.dim)[..., : values.dim]
    sums.read_exact(grouped.to(dtype), seen)
    return sums.result().flatten(1, 2).to(query.dtype)


class _Sums:
    """The running softmax of every query: (batch, kv heads, group, queries, 1 or dim), float32 or better."""

    def __init__(self, grouped: torch.Tensor, keys: QuantizedKV, values: QuantizedKV, params: AttentionParams) -> None:
        self.keys, self.values, self.params = keys, values, params
        self.queries = grouped.shape[-2]
        kind = torch.promote_types(grouped.dtype, torch.float32)
        width = padded_dim(values.dim) if keys.coded else values.dim
        self.row_max = torch.full((*grouped.shape[:-1], 1), -torch.inf, dtype=kind, device=grouped.device)
        self.row_sum = torch.zeros_like(self.row_max)
        self.total = torch.zeros((*grouped.shape[:-1], width), dtype=kind, device=grouped.device)
        self.rows = max(1, _LOGITS_AT_ONCE // (_TILE * grouped[..., 0, 0].numel()))

    def read_codes(self, rotated: torch.Tensor, coded: int, seen: torch.Tensor) -> None:
        tile = _TILE if self.queries > 1 else _TILE_FOR_ONE
        for start in range(0, coded, tile):
            stop = min(start + tile, coded)
            k, v = (side.rotated(start, stop, rotated.dtype) for side in (self.keys, self.values))
            first = int(torch.searchsorted(seen, start, right=True))
            for low in range(first, self.queries, self.rows):
                at = slice(low, min(low + self.rows, self.queries))
                allowed = None
                if seen[low] < stop:
                    allowed = seen[at, None] > torch.arange(start, stop)
                self._read(rotated, k, v, at, start, allowed)

    def read_exact(self, query: torch.Tensor, seen: torch.Tensor) -> None:
        begin, rows = self.keys.length - self.queries, min(self.rows, 256)
        for low in range(0, self.queries, rows):
            at = slice(low, min(low + rows, self.queries))
            end = self._last_visible(at, begin)
            for start in range(int(seen[low]), end, _TILE):
                stop = min(start + _TILE, end)
                k, v = (side.exact_slice(start, stop, query.dtype) for side in (self.keys, self.values))
                self._read(query, k, v, at, start, self._exact_allowed(at, start, stop, begin, seen))

    def _last_visible(self, at: slice, begin: int) -> int:
        """Return the end of the tokens that queries `at` may see."""
        mask = self.params.mask
        if mask is None:
            return begin + at.stop if self.params.causal else self.keys.length
        allowed = _rows(mask, at)
        if allowed.dtype != torch.bool:
            allowed = allowed > torch.finfo(allowed.dtype).min
        columns = allowed.flatten(0, -2).any(0).nonzero()
        return int(columns[-1]) + 1 if len(columns) else 0

    def _exact_allowed(self, at: slice, start: int, stop: int, begin: int, seen: torch.Tensor) -> torch.Tensor | None:
        positions, allowed = torch.arange(start, stop), None
        if seen[at.stop - 1] > start:
            allowed = positions >= seen[at, None]
        if self.params.mask is None and self.params.causal and stop > begin + at.start + 1:
            past = positions <= torch.arange(begin + at.start, begin + at.stop)[:, None]
            allowed = past if allowed is None else allowed & past
        return allowed

    def _read(
        self, query: torch.Tensor, k: torch.Tensor, v: torch.Tensor, at: slice, start: int, allowed: torch.Tensor | None
    ) -> None:
        """Add a tile of tokens, from position `start` on, to the sums of queries `at`."""
        rows = query[..., at, :]
        logits = _product(rows.flatten(2, 3), k.mT).unflatten(2, rows.shape[2:4]) * self.params.scaling
        if self.params.softcap:
            logits = torch.tanh(logits / self.params.softcap) * self.params.softcap
        logits = self._masked(logits, at, start, allowed)
        row_max = torch.maximum(self.row_max[..., at, :], logits.amax(-1, keepdim=True))
        base = row_max.masked_fill(row_max == -torch.inf, 0.0)
        p, rescale = torch.exp(logits - base), torch.exp(self.row_max[..., at, :] - base)
        self.row_sum[..., at, :] = self.row_sum[..., at, :] * rescale + p.sum(-1, keepdim=True)
        read = _product(p.to(v.dtype).flatten(2, 3), v).unflatten(2, rows.shape[2:4])
        self.total[..., at, :] = self.total[..., at, :] * rescale + read
        self.row_max[..., at, :] = row_max

    def _masked(self, logits: torch.Tensor, at: slice, start: int, allowed: torch.Tensor | None) -> torch.Tensor:
        if self.params.mask is not None:
            part = _rows(self.params.mask, at)[..., start : start + logits.shape[-1]]
            part = part[:, :, None] if part.shape[1] == 1 else part.unflatten(1, logits.shape[1:3])
            logits = logits.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else logits + part
        return logits if allowed is None else logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def result(self) -> torch.Tensor:
        return torch.where(self.row_sum == 0, 0.0, self.total / self.row_sum)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply (batch, heads, m, k) by (batch, heads, k, n), with unrounded sums in float32 or better."""
    if a.dtype.itemsize >= 4:
        return a @ b
    flat = torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=torch.float32)
    product: torch.Tensor = flat.unflatten(0, a.shape[:2])
    return product


def _rows(mask: torch.Tensor, at: slice) -> torch.Tensor:
    return mask if mask.shape[2] == 1 else mask[:, :, at]
