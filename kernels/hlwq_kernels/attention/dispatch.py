"""Attention over a quantized cache: the CUDA kernel for one token per sequence where supported, else torch."""

from __future__ import annotations

from typing import Any

import torch

from .cuda_gpu import attend_cuda, supports_attention
from .kv_states import QuantizedKV
from .kv_tables import KVTables
from .reference import AttentionParams, attend_reference


def attend(
    query: torch.Tensor, keys: QuantizedKV, values: QuantizedKV, seen: torch.Tensor, params: AttentionParams
) -> torch.Tensor:
    """Compute attention of the newest tokens over quantized and exact ones; see `attend_reference`.

    For one token per sequence this is one `torch.library` custom op, also under torch.compile.
    """
    mask = params.mask
    shared = mask is None or (mask.dtype == torch.bool and mask.shape[1:3] == (1, 1))
    if query.shape[2] != 1 or not shared or keys.first != keys.coded:
        return attend_reference(query, keys.resolved(), values.resolved(), seen, params)
    found: torch.Tensor = _attend_one_op(
        query[:, :, 0],
        keys.codes,
        keys.scales,
        keys.exact,
        list(keys.tables),
        values.codes,
        values.scales,
        values.exact,
        list(values.tables),
        keys.coded,
        keys.lengths,
        None if mask is None else mask[:, 0, 0],
        params.scaling,
        params.softcap,
    )
    return found[:, :, None]


@torch.library.custom_op("hlwq::attend_one", mutates_args=())
def _attend_one_op(
    query: torch.Tensor,
    k_codes: torch.Tensor,
    k_scales: torch.Tensor,
    k_exact: torch.Tensor,
    k_tables: list[torch.Tensor],
    v_codes: torch.Tensor,
    v_scales: torch.Tensor,
    v_exact: torch.Tensor,
    v_tables: list[torch.Tensor],
    coded: int,
    lengths: torch.Tensor | None,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float,
) -> torch.Tensor:
    keys = QuantizedKV(k_codes, k_scales, coded, k_exact, coded, KVTables(*k_tables), lengths)
    values = QuantizedKV(v_codes, v_scales, coded, v_exact, coded, KVTables(*v_tables), lengths)
    if supports_attention(query, keys, values):
        return attend_cuda(query, keys, values, mask, scaling, softcap)
    keys, values = keys.resolved(), values.resolved()
    params = AttentionParams(scaling, softcap, None if mask is None else mask[:, None, None, : keys.length])
    return attend_reference(query[:, :, None], keys, values, torch.tensor([keys.coded]), params)[:, :, 0].contiguous()


@_attend_one_op.register_fake
def _(query: torch.Tensor, *others: Any) -> torch.Tensor:
    v_exact = others[6]
    return query.new_empty(query.shape[0], query.shape[1], v_exact.shape[-1])
