"""The kernel for a few tokens, its source compiled for the CPU: the product, however many CTAs share the rows."""

from __future__ import annotations

import pytest
import torch

from hlwq_kernels import CodeTables
from hlwq_kernels.codes import SCALE_STEPS, hadamard
from hlwq_kernels.decode import decode_rows_reference
from tests.kernels.weights import tables
from tests.support.cuda_on_cpu import addresses, library

_LAUNCH = """
static i64 a[12];
extern "C" void launch(unsigned grid, unsigned threads, const i64* arguments) {
    memcpy(a, arguments, sizeof(a));
    run_grid({grid, 1, 1}, threads, []() {
        gemm_small_m((const u16*)a[0], (const float*)a[1], a[2], (const u8*)a[3], (const u8*)a[4], (const u16*)a[5],
                     (const float*)a[6], (const float*)a[7], (const void*)a[8], a[9], a[10], (void*)a[11]);
    });
}
"""
UNTOUCHED = 7.5


def coded(
    bits: int, n: int, log8: bool, rows: int, columns: int, seed: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Random codes, scales and bases."""
    codes = torch.randint(0, 256, (rows, columns * bits // 8), dtype=torch.uint8, generator=seed)
    if not log8:
        return codes, torch.rand(rows, columns // n, generator=seed).mul(n**0.5).half(), None
    scales = torch.randint(150, 256, (rows, columns // n), dtype=torch.uint8, generator=seed)
    return codes, scales, torch.rand(rows, generator=seed).add(0.01).bfloat16()


@pytest.mark.parametrize(
    ("bits", "n", "log8", "split", "rows", "columns", "tokens", "grids"),
    [
        (5, 64, True, 8, 100, 320, 7, (1, 2, 7)),
        (3, 64, False, 8, 57, 1152, 16, (1, 3, 4)),
        (8, 256, True, 2, 150, 768, 9, (1, 2, 3)),
        (7, 32, False, 1, 300, 96, 1, (1, 2, 3)),
    ],
)
def test_rows_are_those_of_the_decoded_weight_whichever_cta_takes_them(
    bits: int, n: int, log8: bool, split: int, rows: int, columns: int, tokens: int, grids: tuple[int, ...]
) -> None:
    seed = torch.Generator().manual_seed(rows)
    codes, scales, base = coded(bits, n, log8, rows, columns, seed)
    turned = torch.randn(tokens, columns, generator=seed).half()
    units, bias = torch.rand(tokens, generator=seed) + 0.5, torch.randn(rows, generator=seed)
    table: CodeTables = tables(bits)
    centroids, steps = torch.from_numpy(table.centroids.copy()), torch.tensor(SCALE_STEPS)
    weight = decode_rows_reference(codes, scales, base, centroids, n, columns).double()
    x = hadamard(turned.double().view(tokens, -1, n)).view(tokens, columns) / n**0.5
    expected = x * units.double()[:, None] @ weight.T + bias
    macros = (
        ("BITS", bits), ("N", n), ("LOG8", int(log8)), ("SPLIT", split), ("TILES", -(-tokens // 8)), ("ALIGN", 4),
        ("COPIES", 2), ("INPUT", 2), ("OUTPUT", 0), ("THREADS", 256), ("__shared__", "static"),
    )  # fmt: skip
    built = library("linear/gemm_small_m.cu", macros, _LAUNCH)
    found = []
    for grid in grids:
        y = torch.full((tokens + 1, rows), UNTOUCHED)
        base_at = 0 if base is None else base
        given = [turned, units, tokens, codes, scales, base_at, centroids, steps, bias, rows, columns, y]
        built.launch(grid, 256, addresses(given))
        assert (y[tokens] == UNTOUCHED).all()
        found.append(y[:tokens])
    assert (found[0].double() - expected).norm() < 1e-3 * expected.norm()
    assert all(torch.equal(y, found[0]) for y in found)
