"""Caches to read and the attention that reads them, slowly and in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hlwq_cli.codec import lloyd_max
from hlwq_kernels.attention import AttentionParams, KVTables, QuantizedKV, encode_kv_reference

Layout = tuple[int, int, int, int]
"""KV heads, query heads to each, dims of keys and of values."""


@dataclass(frozen=True)
class Case:
    """A cache, the queries of its newest tokens, and what each of them sees in codes."""

    query: torch.Tensor
    keys: QuantizedKV
    values: QuantizedKV
    seen: torch.Tensor


def tables(bits: int, device: str = "cpu") -> KVTables:
    return KVTables.of(lloyd_max(bits), torch.device(device))


def cached(states: torch.Tensor, coded: int, first: int, bits: int, room: int = 5) -> QuantizedKV:
    """Tokens of which `coded` are, and those from `first` on are exact; behind the codes lie random bytes."""
    t = tables(bits, states.device.type)
    codes, scales = encode_kv_reference(states[:, :, :coded], t)
    rest = torch.randint(0, 256, (*codes.shape[:2], room, codes.shape[-1]), dtype=torch.uint8).to(codes.device)
    codes, scales = torch.cat([codes, rest], dim=2), torch.cat([scales, rest[..., 0]], dim=2)
    return QuantizedKV(codes, scales, coded, states[:, :, first:], first, t)


def make_case(
    layout: Layout,
    coded: int,
    exact: int,
    bits: tuple[int, int] = (4, 4),
    queries: int = 1,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Case:
    """`queries` newest tokens of a cache of `coded` + `exact`; with several, each sees half of the codes or all."""
    torch.manual_seed(seed)
    heads, group, dim, value_dim = layout
    length = coded + exact
    size = torch.rand(batch, heads, length, 1) * 3 + 0.05
    k = (torch.randn(batch, heads, length, dim) * size).to(device, dtype)
    v = (torch.randn(batch, heads, length, value_dim) * size.flip(2)).to(device, dtype)
    query = torch.randn(batch, heads * group, queries, dim).to(device, dtype)
    seen = torch.full((queries,), coded, dtype=torch.int64)
    seen[: queries // 2] = coded // 2
    first = int(seen[0])
    return Case(query, cached(k, coded, first, bits[0]), cached(v, coded, first, bits[1]), seen)


def expected(case: Case, params: AttentionParams) -> torch.Tensor:
    """Softmax attention over the decoded cache, query by query, in float64."""
    group = case.query.shape[1] // case.keys.codes.shape[1]
    outs = []
    for t in range(case.query.shape[2]):
        k, v = (_as_seen(side, int(case.seen[t])).repeat_interleave(group, 1) for side in (case.keys, case.values))
        logits = case.query[:, :, t : t + 1].double() @ k.mT * params.scaling
        if params.softcap:
            logits = torch.tanh(logits / params.softcap) * params.softcap
        if params.mask is not None:
            row = params.mask[:, :, min(t, params.mask.shape[2] - 1)][:, :, None]
            logits = logits.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else logits + row
        elif params.causal:
            logits[..., k.shape[2] - case.query.shape[2] + t + 1 :] = -torch.inf
        outs.append(torch.softmax(logits, dim=-1).nan_to_num(0.0) @ v)
    return torch.cat(outs, dim=2)


def _as_seen(side: QuantizedKV, coded: int) -> torch.Tensor:
    part = side._replace(coded=coded)
    return part.decoded().double()
