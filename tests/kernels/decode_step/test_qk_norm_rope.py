"""The norms and the rotation of heads, their source compiled for the CPU: those of the references."""

from __future__ import annotations

import pytest
import torch

from hlwq_kernels.decode_step import DecodeCache, Norm, qk_norm_rope_append_reference, qk_norm_rope_reference
from tests.support.cuda_on_cpu import addresses, library

_LAUNCH = """
static i64 a[15];
extern "C" void launch(unsigned heads, unsigned rows, const i64* arguments) {
    memcpy(a, arguments, sizeof(a));
    run_grid({heads, rows, 1}, 32, []() {
        qk_norm_rope_append((const void*)a[0], a[1], (const void*)a[2], a[3], (const void*)a[4], a[5],
                            (const void*)a[6], (const void*)a[7], (const void*)a[8], (const void*)a[9],
                            (const i64*)a[10], 1e-3f, (void*)a[11], (void*)a[12], (void*)a[13], a[14]);
    });
}
"""
ROWS, EPS = 3, 1e-3


@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 2, 64), (3, 1, 128)])
@pytest.mark.parametrize("has_table", [False, True])
def test_heads_are_those_of_the_reference(heads: int, key_heads: int, size: int, has_table: bool) -> None:
    seed = torch.Generator().manual_seed(size + has_table)
    qkv = torch.randn(ROWS, (heads + 2 * key_heads) * size, generator=seed)
    q, k, v = qkv.split([heads * size, key_heads * size, key_heads * size], dim=1)
    norms = [torch.randn(size, generator=seed) for _ in range(2)]
    table, positions = torch.randn(50, size, generator=seed), torch.tensor([49, 0, 7])
    cosines, sines = (torch.randn(ROWS, size, generator=seed) for _ in range(2))
    slots, slot = (1, positions) if has_table else (5, torch.tensor([3]))
    out = torch.full((ROWS, heads, size), torch.nan)
    keys, values = (torch.full((ROWS, key_heads, slots, size), torch.nan) for _ in range(2))
    macros = (
        ("INPUT", 0), ("OUTPUT", 0), ("THREADS", 32), ("SIZE", size), ("QUERIES", heads), ("KEYS", key_heads),
        ("TABLE", int(has_table)), ("__shared__", "static"),
    )  # fmt: skip
    stride, angles = qkv.shape[1], (table, 0) if has_table else (cosines, sines)
    given = [q, stride, k, stride, v, stride, *norms, *angles, slot, out, keys, values, slots]
    library("decode_step/qk_norm_rope.cu", macros, _LAUNCH).launch(heads + 2 * key_heads, ROWS, addresses(given))
    of_queries, of_keys = (Norm(weight, EPS) for weight in norms)
    if has_table:
        expected = qk_norm_rope_reference(q, k, v, of_queries, of_keys, table, positions)
        found = (out, keys[:, :, 0], values[:, :, 0])
    else:
        cache = DecodeCache(torch.full_like(keys, torch.nan), torch.full_like(values, torch.nan), slot)
        query = qk_norm_rope_append_reference(q, k, v, of_queries, of_keys, cosines, sines, cache)
        expected, found = (query, cache.keys, cache.values), (out, keys, values)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5, equal_nan=True)
