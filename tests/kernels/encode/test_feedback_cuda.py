"""The CUDA encoder with error feedback, compiled for the CPU: what the reference makes; and for every generation."""

import pytest
import torch

from hlwq_kernels.common import compile_kernel
from hlwq_kernels.encode import FeedbackFactor, FeedbackRows, encode_feedback_reference
from hlwq_kernels.encode.feedback_cuda import BLOCK, PREPARE, FeedbackKernelConfig, encode_feedback_cuda
from tests.kernels.encode.feedback_cases import factor_of, spread_weights
from tests.kernels.encode.feedback_on_cpu import launch_on_cpu
from tests.kernels.encode.test_cuda_config import local_bytes
from tests.kernels.weights import hostile_rows, tables


def both(
    weight: torch.Tensor, factor: FeedbackFactor, bits: int, n: int, search: bool = True, rows_per_warp: int = 1
) -> tuple[FeedbackRows, FeedbackRows]:
    coded = encode_feedback_cuda(weight, factor, tables(bits), n, search, rows_per_warp, launch_on_cpu)
    return coded, encode_feedback_reference(weight, factor, tables(bits), n, search)


@pytest.mark.parametrize(
    ("bits", "n", "search", "rows_per_warp"),
    [(2, 64, True, 1), (4, 64, True, 2), (5, 64, False, 1), (8, 32, True, 1)],
)
def test_codes_are_those_of_the_reference(bits: int, n: int, search: bool, rows_per_warp: int) -> None:
    weight, factor = spread_weights(2, 3, n + 6), factor_of(2, n + 6, n)
    coded, expected = both(weight, factor, bits, n, search, rows_per_warp)
    assert torch.equal(coded.codes, expected.codes)
    assert torch.equal(coded.scales, expected.scales)
    assert torch.equal(coded.base, expected.base)
    assert torch.equal(coded.energy, expected.energy)
    for name in ("error", "loss", "loss_energy"):
        torch.testing.assert_close(getattr(coded, name), getattr(expected, name), rtol=1e-4, atol=0, msg=name)


def test_panels_of_blocks_make_the_loss_of_the_reference() -> None:
    weight, factor = spread_weights(1, 4, 5 * 32).to(torch.bfloat16), factor_of(1, 5 * 32, 32)
    coded, expected = both(weight, factor, 4, 32)
    torch.testing.assert_close(coded.loss.sum(), expected.loss.sum(), rtol=0.01, atol=0)
    assert (coded.codes == expected.codes).float().mean() > 0.9


def test_hostile_rows_are_marked_and_leave_their_neighbours_alone() -> None:
    weight = hostile_rows(40)
    weight[2, 39] = torch.nan
    weight[4, 3] = 2.0**120
    coded, expected = both(weight[None], factor_of(1, 40, 32), 4, 32)
    assert coded.energy.isnan().nonzero().tolist() == [[0, 2], [0, 4]]
    assert torch.equal(coded.base, expected.base)
    assert torch.equal(coded.energy.nan_to_num(), expected.energy.nan_to_num())
    assert (coded.codes == expected.codes).float().mean() > 0.9


def test_at_most_22_registers_are_spilled_on_the_device_it_was_made_for() -> None:
    config = FeedbackKernelConfig(4, 64, search=True, dtype=torch.bfloat16)
    assert config.shared_bytes <= 48 * 1024
    made = compile_kernel(BLOCK, "feedback", config.block_macros, "sm_90")
    assert local_bytes(bytes(made.code)) <= 88


@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
def test_kernels_compile_for_older_generations(arch: str) -> None:
    """Blocks of 32: the compiler takes ten seconds for those of 64."""
    config = FeedbackKernelConfig(4, 32, search=True, dtype=torch.bfloat16)
    assert compile_kernel(BLOCK, "feedback", config.block_macros, arch).code
    assert compile_kernel(PREPARE, "feedback_prepare", config.prepare_macros, arch, fma=False).code
