"""The CUDA kernels that attend to one token a sequence, compiled for the CPU: attention over the decoded cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hlwq_kernels.attention import AttentionParams, QuantizedKV
from hlwq_kernels.attention.cuda_gpu import COMBINE_SOURCE, SOURCE, AttentionKernelConfig
from hlwq_kernels.common import compile_kernel
from tests.kernels.attention.attention_on_cpu import attend_emulated
from tests.kernels.attention.kv_cases import Case, Layout, expected, make_case
from tests.kernels.encode.test_cuda_config import local_bytes
from tests.kernels.weights import BITS

ROOM = {torch.float32: 2e-3, torch.float16: 3e-3, torch.bfloat16: 8e-3}
"""Largest error over the largest value: float16 products within, and the result's own rounding."""
LAYOUTS: list[Layout] = [
    (2, 4, 128, 128),
    (2, 1, 64, 64),
    (1, 8, 512, 512),
    (1, 16, 256, 256),
    (1, 40, 128, 128),
    (2, 3, 96, 80),
    (1, 2, 320, 384),
    (1, 3, 192, 128),
]
OTHERS = [(4, 128), (16, 512), (8, 256)]
"""Query heads and dims that take fewer registers than 8 heads of 512, where every width is looked at."""


def check(case: Case, params: AttentionParams, splits: int = 2, large_smem: bool = True) -> None:
    found, exactly = attend_emulated(case, params, splits, large_smem), expected(case, params)
    assert found.dtype == case.query.dtype
    off = (found.double() - exactly).abs().max() / exactly.abs().max()
    assert off < ROOM[case.query.dtype], float(off)


def params(layout: Layout, **others: object) -> AttentionParams:
    return AttentionParams(layout[2] ** -0.5, **others)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_head_layout(layout: Layout) -> None:
    check(make_case(layout, 150, 70, batch=1), params(layout))


@pytest.mark.parametrize("bits", BITS)
def test_every_width(bits: int) -> None:
    layout = (1, 2, 128, 128)
    check(make_case(layout, 60, 20, (bits, 4), batch=1), params(layout))
    check(make_case(layout, 60, 20, (4, bits), batch=1), params(layout))
    if bits in (3, 8):
        check(make_case(layout, 60, 20, (bits, bits), batch=1), params(layout), large_smem=False)


@pytest.mark.parametrize("layout", [(1, 2, 64, 64), (1, 1, 512, 512)], ids=str)
@pytest.mark.parametrize("coded", [0, 1, 15, 16, 17, 127, 128, 129, 300])
def test_lengths_round_the_edges_of_tiles(coded: int, layout: Layout) -> None:
    check(make_case(layout, coded, 1, batch=1), params(layout), splits=3)


@pytest.mark.parametrize("exact", [31, 32, 33, 95])
def test_exact_tokens_round_the_edges_of_parts(exact: int) -> None:
    layout = (1, 2, 64, 64)
    check(make_case(layout, 20, exact, batch=1), params(layout), splits=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types(dtype: torch.dtype) -> None:
    layout = (2, 2, 64, 64)
    check(make_case(layout, 100, 40, dtype=dtype), params(layout))


def test_masks_and_softcapping() -> None:
    layout = (2, 4, 64, 64)
    case = make_case(layout, 150, 40)
    mask = torch.ones(2, 1, 1, 190, dtype=torch.bool)
    mask[1, ..., :100], mask[:, ..., 7] = False, False
    check(case, params(layout, mask=mask))
    check(case, params(layout, mask=mask[1:], softcap=1.5))
    mask[0] = False
    found = attend_emulated(case, params(layout, mask=mask))
    assert not found[0].any()
    assert found[1].isfinite().all()


def test_what_is_not_a_number_stays_so_and_nothing_is_all_that_nothing_gives() -> None:
    layout = (1, 2, 64, 64)
    case = make_case(layout, 60, 10, batch=2)
    case.keys.scales[0, :, 33], case.values.scales[1, :, :20] = 255, 0
    found = attend_emulated(case, params(layout))
    assert found[0].isnan().all()
    exactly = expected(case, params(layout))[1]
    torch.testing.assert_close(found[1].double(), exactly, rtol=0, atol=2e-3 * float(exactly.abs().max()))


def in_a_ring(side: QuantizedKV, lengths: torch.Tensor, size: int = 96, room: int = 40) -> QuantizedKV:
    """The same tokens where only the device knows how many, and more fit."""
    ring = torch.full((*side.exact.shape[:2], size, side.dim), torch.nan)
    ring[:, :, torch.arange(side.coded, side.length) % size] = side.exact
    assert side.scales.shape[2] <= side.coded + room
    return side._replace(coded=side.coded + room, first=side.coded + room, exact=ring, lengths=lengths)


@pytest.mark.parametrize("coded", [0, 32, 160])
def test_lengths_may_lie_on_the_device_and_exact_tokens_in_a_ring(coded: int) -> None:
    layout = (2, 2, 64, 64)
    case = make_case(layout, coded, 70)
    mask = torch.zeros(2, 1, 1, coded + 200, dtype=torch.bool)
    mask[..., 3 : coded + 70] = True
    lengths = torch.tensor([coded, 70])
    found = attend_emulated(
        replace(case, keys=in_a_ring(case.keys, lengths), values=in_a_ring(case.values, lengths)),
        params(layout, mask=mask),
    )
    exactly = expected(case, params(layout, mask=mask[..., : coded + 70]))
    assert (found.double() - exactly).abs().max() < ROOM[torch.float32] * exactly.abs().max()


@pytest.mark.parametrize(
    ("layout", "arch"),
    [((4, 128), "sm_75"), ((4, 128), "sm_80"), ((8, 512), "sm_75"), ((8, 512), "sm_80"), ((3, 64), "sm_90")],
    ids=str,
)
def test_it_compiles_for_every_generation(layout: tuple[int, int], arch: str) -> None:
    group, dim = layout
    config = AttentionKernelConfig(
        (4, 3), (dim, dim), group, torch.bfloat16, one_table=False, large_smem=arch != "sm_75"
    )
    assert config.shared_bytes <= (64 if arch == "sm_75" else 160) * 1024
    assert compile_kernel(SOURCE, "attend", config.macros, arch).code
    assert compile_kernel(COMBINE_SOURCE, "combine_splits", config.combine_macros, arch).code


@pytest.mark.parametrize(
    ("layout", "bits"),
    [*(((8, 512), bits) for bits in (2, 3, 4, 8)), *((other, bits) for other in OTHERS for bits in (3, 4))],
    ids=str,
)
def test_hardly_a_register_is_spilled_on_the_device_it_was_tuned_for(layout: tuple[int, int], bits: int) -> None:
    group, dim = layout
    config = AttentionKernelConfig((bits, bits), (dim, dim), group, torch.bfloat16)
    spilled = local_bytes(bytes(compile_kernel(SOURCE, "attend", config.macros, "sm_90").code))
    assert spilled <= 64
