"""Attention by the CUDA kernels' source on the CPU: see cuda_on_cpu."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from hlwq_kernels.attention import AttentionParams
from hlwq_kernels.attention.cuda_gpu import (
    COMBINE_SOURCE,
    COMBINE_WARPS,
    SOURCE,
    AttentionKernelConfig,
    attend_arguments,
    combine_shared_bytes,
)
from tests.kernels.attention.kv_cases import Case
from tests.support.cuda_on_cpu import library

_ATTEND = """
static i64 a[24];
static float f[2];
extern "C" void launch(unsigned x, unsigned y, unsigned z, unsigned threads, const i64* arguments, const float* reals) {
    memcpy(a, arguments, sizeof(a));
    memcpy(f, reals, sizeof(f));
    run_grid({x, y, z}, threads, []() {
        attend((const void*)a[0], (const u8*)a[1], (const u8*)a[2], (const u8*)a[3], (const u8*)a[4],
               (const float*)a[5], (const float*)a[6], (const float*)a[7], (const void*)a[8], (const void*)a[9],
               (const u8*)a[10], (const i64*)a[11], a[12], a[13], a[14], a[15], a[16], a[17], a[18], a[19], a[20], f[0],
               f[1], (float*)a[21], (float*)a[22], (float*)a[23]);
    });
}
"""
_COMBINE = """
static i64 a[6];
extern "C" void launch(unsigned x, unsigned threads, const i64* arguments) {
    memcpy(a, arguments, sizeof(a));
    run_grid({x, 1, 1}, threads, []() {
        combine_splits((const float*)a[0], (const float*)a[1], (const float*)a[2], a[3], a[4], (void*)a[5]);
    });
}
"""
_ARENA = 16 * 2**16


def _addresses(arguments: tuple[Any, ...]) -> Any:
    plain = [x.data_ptr() if isinstance(x, torch.Tensor) else x or 0 for x in arguments]
    return (ctypes.c_longlong * len(plain))(*plain)


def attend_emulated(
    case: Case, params: AttentionParams, coded_splits: int = 2, large_smem: bool = True
) -> torch.Tensor:
    """`attend` of one token a sequence by the CUDA kernels' source."""
    query, keys, values = case.query[:, :, 0], case.keys, case.values
    (batch, query_heads, _), heads = query.shape, keys.codes.shape[1]
    config = AttentionKernelConfig(
        (keys.tables.bits, values.tables.bits),
        (keys.dim, values.dim),
        query_heads // heads,
        query.dtype,
        params.mask is not None,
        params.softcap != 0.0,
        keys.tables.bits == values.tables.bits,
        large_smem,
    )
    assert config.shared_bytes <= _ARENA
    exact_splits = -(-keys.exact.shape[2] // config.exact)
    splits, rows = exact_splits + coded_splits, batch * query_heads
    sums = torch.full((rows, splits, config.stored[1]), torch.nan)
    row_max, row_sum = torch.full((2, rows, splits), torch.nan)
    out = torch.full((batch, query_heads, values.dim), torch.nan).to(query.dtype)
    mask = None if params.mask is None else params.mask[:, 0, 0]
    arguments = attend_arguments(query, keys, values, mask, params.scaling, params.softcap, exact_splits)
    assert [type(x) for x in arguments[-2:]] == [ctypes.c_float] * 2
    floats = (ctypes.c_float * 2)(*arguments[-2:])
    addresses = _addresses((*arguments[:-2], sums, row_max, row_sum))
    grid = (splits, batch * heads, -(-config.group // config.rows))
    library(SOURCE, config.macros, _ATTEND).launch(*grid, 32 * config.warps, addresses, floats)
    assert combine_shared_bytes(config, splits) <= _ARENA
    arguments_of_combine = _addresses((sums, row_max, row_sum, exact_splits, splits, out))
    library(COMBINE_SOURCE, config.combine_macros, _COMBINE).launch(rows, 32 * COMBINE_WARPS, arguments_of_combine)
    return out[:, :, None]
