"""Attention over codes is attention over the decoded cache: every width, head layout, length and mask."""

import pytest
import torch

from hlwq_kernels.attention import AttentionParams, attend
from tests.kernels.attention.kv_cases import Case, Layout, expected, make_case
from tests.kernels.weights import BITS

LAYOUTS = [(1, 1, 64, 64), (2, 8, 128, 128), (2, 3, 64, 64), (1, 4, 80, 96), (2, 2, 512, 512), (2, 1, 192, 128)]


def check(case: Case, params: AttentionParams) -> None:
    found = attend(case.query, case.keys, case.values, case.seen, params)
    assert found.dtype == case.query.dtype
    torch.testing.assert_close(found.double(), expected(case, params), rtol=1e-4, atol=2e-5)


def params(layout: Layout, **others: object) -> AttentionParams:
    return AttentionParams(layout[2] ** -0.5, **others)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("queries", [1, 70])
def test_every_head_layout(layout: Layout, queries: int) -> None:
    check(make_case(layout, 150, 90, queries=queries), params(layout))


@pytest.mark.parametrize("keys", BITS)
@pytest.mark.parametrize("values", [2, 5, 8])
def test_every_width(keys: int, values: int) -> None:
    for queries in (1, 9):
        check(make_case((2, 2, 64, 64), 96, 64, (keys, values), queries), params((2, 2, 64, 64)))


@pytest.mark.parametrize("coded", [0, 1, 31, 32, 511, 512, 513, 4095, 4097])
@pytest.mark.parametrize("queries", [1, 3])
def test_lengths_round_the_edges_of_blocks(coded: int, queries: int) -> None:
    layout = (1, 2, 64, 64)
    for exact in (queries, 65):
        check(make_case(layout, coded, exact, queries=queries, batch=1), params(layout))


@pytest.mark.parametrize("queries", [300, 700])
def test_more_queries_than_a_tile(queries: int) -> None:
    layout = (1, 2, 64, 64)
    check(make_case(layout, 600, queries + 20, queries=queries, batch=1), params(layout))


@pytest.mark.parametrize("queries", [1, 6])
def test_softcapping(queries: int) -> None:
    layout = (2, 2, 64, 64)
    check(make_case(layout, 96, 70, queries=queries), params(layout, softcap=1.5))


@pytest.mark.parametrize("queries", [1, 6])
def test_without_causality_a_query_sees_what_comes_after_it(queries: int) -> None:
    layout = (2, 2, 64, 64)
    check(make_case(layout, 96, 70, queries=queries), params(layout, causal=False))


@pytest.mark.parametrize("queries", [1, 6])
@pytest.mark.parametrize("heads", [1, 6])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_masks_of_any_shape_and_kind(queries: int, heads: int, kind: torch.dtype) -> None:
    layout = (2, 3, 64, 64)
    case = make_case(layout, 96, 70, queries=queries)
    allowed = torch.rand(2, heads, queries, 166, generator=torch.Generator().manual_seed(3)) < 0.6
    mask = allowed if kind == torch.bool else torch.where(allowed, 0.3, torch.finfo(kind).min)
    check(case, params(layout, mask=mask))


def test_padding_on_the_left_changes_nothing() -> None:
    layout = (2, 2, 64, 64)
    case = make_case(layout, 96, 64)
    mask = torch.ones(2, 1, 1, 160, dtype=torch.bool)
    mask[1, ..., :120] = False
    check(case, params(layout, mask=mask))


def test_a_query_that_may_see_nothing_gets_zeros() -> None:
    layout = (2, 2, 64, 64)
    case = make_case(layout, 96, 64)
    mask = torch.ones(2, 1, 1, 160, dtype=torch.bool)
    mask[0] = False
    found = attend(case.query, case.keys, case.values, case.seen, params(layout, mask=mask))
    assert not found[0].any()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_round_once(dtype: torch.dtype) -> None:
    layout = (2, 2, 64, 64)
    case = make_case(layout, 96, 64, dtype=dtype)
    found = attend(case.query, case.keys, case.values, case.seen, params(layout))
    assert torch.equal(found, expected(case, params(layout)).to(dtype)) or torch.allclose(
        found.double(), expected(case, params(layout)), rtol=2 * torch.finfo(dtype).eps, atol=1e-4
    )


def test_huge_logits_do_not_overflow() -> None:
    layout = (2, 2, 64, 64)
    case = make_case(layout, 96, 64)
    check(case, AttentionParams(30.0))
