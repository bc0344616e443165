"""The kernels for one token, their source compiled for the CPU: products and sums over experts in every layout."""

from __future__ import annotations

import ctypes

import pytest
import torch

from hlwq_kernels.codes import SCALE_STEPS
from hlwq_kernels.decode import decode_rows_reference
from hlwq_kernels.linear.gemv import Shape, lay_out
from tests.kernels.linear.test_gemm_small_m import UNTOUCHED, coded
from tests.kernels.weights import tables
from tests.support.cuda_on_cpu import addresses, library

_LAUNCH = """
static i64 a[19];
extern "C" void launch(unsigned threads, const i64* arguments) {
    memcpy(a, arguments, sizeof(a));
    run_grid({(unsigned)a[16], (unsigned)a[17], (unsigned)a[18]}, threads, []() {
        NAME((const void*)a[0], a[1], (const u8*)a[2], (const u8*)a[3], (const u16*)a[4], (const float*)a[5],
             (const float*)a[6], (const void*)a[7], a[8], (const i64*)a[9], (const float*)a[10], a[11], a[12], a[13],
             a[14], (void*)a[15]);
    });
}
"""
EXPERTS = 3


def product(
    kind: int, bits: int, log8: bool, rows: int, columns: int, shape: Shape
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel of a kind (its EXPERTS) gives for two tokens, of kind 0 for one, and what float64 does."""
    seed = torch.Generator().manual_seed(rows)
    codes, scales, base = coded(bits, 64, log8, EXPERTS * rows, columns, seed)
    centroids, steps = torch.from_numpy(tables(bits).centroids.copy()), torch.tensor(SCALE_STEPS)
    weight = decode_rows_reference(codes, scales, base, centroids, 64, columns).double().view(EXPERTS, rows, columns)
    chosen = torch.tensor([[2, 0], [EXPERTS, 1]]) if kind else torch.tensor([[0]])
    (tokens, k), routed = chosen.shape, torch.rand(chosen.shape, generator=seed)
    x = torch.randn(tokens * (k if kind == 2 else 1), columns, generator=seed)
    each = torch.stack(
        [
            torch.stack(
                [
                    weight[e] @ x[t * k + j if kind == 2 else t].double() if e < EXPERTS else torch.zeros(rows).double()
                    for j, e in enumerate(row)
                ]
            )
            for t, row in enumerate(chosen.tolist())
        ]
    )
    y = torch.full((tokens * (k if kind == 1 else 1) + 1, rows), UNTOUCHED)
    macros = (
        ("BITS", bits), ("N", 64), ("LOG8", int(log8)), ("ALIGN", 4), ("COPIES", 2), ("INPUT", 0), ("OUTPUT", 0),
        ("GATE", 0), ("COLUMNS", columns), ("TEAMS", shape.teams), ("THREADS", shape.threads), ("CTAS", shape.ctas),
        ("EXPERTS", kind), ("TOP_K", k), ("NAME", "gemv"),
        ("__shared__", "static"),
    )  # fmt: skip
    grid = (shape.grid, k, tokens) if kind == 1 else (shape.grid, tokens, 1)
    strides = [t.nbytes // EXPERTS if t is not None else 0 for t in (codes, scales, base)]
    given = [x, columns, codes, scales, 0 if base is None else base, centroids, steps, 0, rows, chosen, routed, EXPERTS]
    built = library("linear/gemv.cu", macros, _LAUNCH)
    built.launch(ctypes.c_uint(shape.threads), addresses([*given, *strides, y, *grid]))
    assert (y[-1] == UNTOUCHED).all()
    expected = (each * routed.double()[..., None]).sum(1) if kind == 2 else each.flatten(0, 1)
    return y[:-1].double(), expected


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize(
    ("bits", "log8", "rows", "columns", "count"),
    [(5, True, 100, 704, 2), (5, False, 33, 704, 16), (3, True, 500, 64, 1), (8, True, 70, 192, 1)],
)
def test_every_row_is_that_of_the_decoded_weight(
    kind: int, bits: int, log8: bool, rows: int, columns: int, count: int
) -> None:
    shape = lay_out(rows, columns // 32 * (2 if kind == 2 else 1), 4 if kind == 1 else 2, count, 128, 256)
    found, expected = product(kind, bits, log8, rows, columns, shape)
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 5, 88, 256, 704, 1024])
@pytest.mark.parametrize("at_once", [1, 8, 500])
def test_a_layout_has_threads_for_its_rows_and_for_what_belongs_to_them(slices: int, at_once: int) -> None:
    for rows in (1, 7, 100, 3000, 300_000):
        for most in (448, 704):
            shape = lay_out(rows, slices, at_once, 132, most)
            assert shape.teams * slices <= shape.threads <= 1024
            assert 4 * shape.teams <= shape.threads
            assert shape.grid * shape.teams < rows + shape.teams
