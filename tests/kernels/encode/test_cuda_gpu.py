"""The CUDA encoder's source, compiled for the CPU: the bytes of the reference, on every kind of row."""

from __future__ import annotations

import shutil

import pytest
import torch

from hlwq_kernels import EncodedRows
from hlwq_kernels.encode import ScaleKind, encode_rows_reference
from tests.kernels.encode.encode_on_cpu import encode_rows_emulated
from tests.kernels.weights import hostile_rows, lcg_rows, tables

Kind = tuple[int, int, ScaleKind, bool]
DEFAULT: Kind = (5, 64, "log8", True)
FAST: Kind = (5, 64, "log8", False)
CLASSIC: Kind = (5, 128, "fp16", False)
KINDS: list[Kind] = [
    *((bits, 64, "log8", True) for bits in (2, 3, 4, 5, 6, 7, 8)),
    FAST,
    CLASSIC,
    (3, 32, "fp16", True),
    (8, 32, "log8", False),
    (6, 256, "fp16", True),
    (7, 256, "log8", False),
]


def test_a_compiler_is_there() -> None:
    assert shutil.which("g++"), "the tests of CUDA kernels compile them with g++, too: install it"


def assert_same(coded: EncodedRows, expected: EncodedRows) -> None:
    """Every field, to the byte; NaN for NaN."""
    for name, x, y in zip(EncodedRows._fields, coded, expected, strict=True):
        assert (x is None) == (y is None), name
        if x is not None and y is not None:
            assert x.dtype == y.dtype, name
            assert x.shape == y.shape, name
            same = (x == y) | (x.isnan() & y.isnan())
            assert same.all(), (name, (~same).nonzero()[:4].tolist(), x[~same][:4], y[~same][:4])


def check(weight: torch.Tensor, kind: Kind) -> None:
    bits, n, scale, search = kind
    coded = encode_rows_emulated(weight, tables(bits), n, scale, search)
    assert_same(coded, encode_rows_reference(weight, tables(bits), n, scale, search))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_hostile_rows_have_the_bytes_of_the_reference(kind: Kind) -> None:
    n = kind[1]
    for columns in (n + 65, 1, 3 * n):
        weight = torch.cat([hostile_rows(columns, seed=columns), hostile_rows(columns)[:3]])
        weight[-1, -1], weight[-2, 0], weight[-3, columns // 2] = torch.nan, torch.inf, -torch.inf
        check(weight.to(torch.bfloat16), kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", [DEFAULT, CLASSIC], ids=str)
def test_every_type_of_weight_has_the_bytes_of_the_reference(kind: Kind, dtype: torch.dtype) -> None:
    check(hostile_rows(321).to(dtype), kind)
    check(lcg_rows().to(dtype), kind)


def rows_that_cancel(n: int) -> torch.Tensor:
    """Rows of many exponents, whose blocks cancel to one weight so small that its sign may be lost on the way."""
    blocks = torch.ones(2, 30, n, dtype=torch.float64)
    blocks[0, :, 4:] = 0
    blocks[:, :, 2] = 2.0 ** -torch.arange(130.0, 160.0, dtype=torch.float64)
    blocks[:, ::2, 2] *= -1
    blocks[:, :, 3] = 0
    exponents = torch.tensor([-110.0, -31, -30, -10, -9, 0, 6, 7, 12, 16, 20, 30, 100], dtype=torch.float64)
    return blocks.flatten() * torch.exp2(exponents)[:, None]


@pytest.mark.parametrize("kind", [DEFAULT, FAST, CLASSIC], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scaling_a_row_or_its_codebook_comes_to_the_same(kind: Kind, dtype: torch.dtype) -> None:
    check(rows_that_cancel(kind[1]).to(dtype), kind)


@pytest.mark.parametrize("kind", [FAST, (4, 256, "fp16", True)], ids=str)
def test_rows_longer_than_a_cta_and_more_rows_than_ctas_hold(kind: Kind) -> None:
    n = kind[1]
    generator = torch.Generator().manual_seed(4)
    check(torch.randn(3, 300 * n + 5, generator=generator).to(torch.bfloat16), kind)
    check(torch.cat([hostile_rows(2 * n).repeat(9, 1), lcg_rows(200, 2 * n)]).to(torch.bfloat16), kind)


def test_a_device_of_little_shared_memory_makes_the_same_bytes() -> None:
    weight = hostile_rows(200).to(torch.bfloat16)
    coded = encode_rows_emulated(weight, tables(5), 64, "log8", True, large_smem=False)
    assert_same(coded, encode_rows_reference(weight, tables(5), 64, "log8", True))
