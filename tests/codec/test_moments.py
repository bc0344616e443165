"""Moments of experts are blended and shrunk by the rule, whatever number of tokens they saw."""

import pytest
import torch

from hlwq_cli.codec import Moments, blend_experts, shrink


def sums(experts: int = 3, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(experts, 20, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[2] = 0
    return x.mT @ x, torch.tensor([20.0, 20.0, 0.0], dtype=torch.float64)


def test_gate_and_up_get_half_an_input_count_of_the_mean_token() -> None:
    h, count = sums()
    blended = blend_experts(Moments(h.clone(), count), "shared")
    mean = h.sum(dim=0) / 40
    torch.testing.assert_close(blended.h, h + 4 * mean)
    torch.testing.assert_close(blended.count, torch.tensor([24.0, 24.0, 4.0], dtype=torch.float64))


def test_down_gets_half_an_input_count_of_the_mean_energy() -> None:
    h, count = sums()
    blended = blend_experts(Moments(h.clone(), count), "isotropic")
    energy = sum(float(h[e].trace()) for e in range(3)) / 40 / 8
    torch.testing.assert_close(blended.h, h + 4 * energy * torch.eye(8, dtype=torch.float64))


@pytest.mark.parametrize("prior", ["shared", "isotropic"])
def test_diagonal_moments_are_blended_and_shrunk_as_the_diagonals_of_full_ones(prior: str) -> None:
    h, count = sums()
    diagonal = h.diagonal(dim1=-2, dim2=-1).clone()
    full = shrink(blend_experts(Moments(h, count), prior))
    short = shrink(blend_experts(Moments(diagonal, count, is_diagonal=True), prior))
    torch.testing.assert_close(short.h, full.diagonal)
    torch.testing.assert_close(short.count, full.count)


def test_off_diagonal_moments_shrink_by_the_number_of_tokens() -> None:
    h = sums()[0][0]
    shrunk = shrink(Moments(h.clone(), 48.0)).h
    mean = float(h.diagonal().mean())
    expected = 0.75 * h + 0.25 * torch.diag(h.diagonal()) + 0.01 * mean * torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(shrunk, expected)


def test_inputs_that_are_always_zero_weigh_alike() -> None:
    assert torch.equal(shrink(Moments(torch.zeros(8, 8), 100.0)).h, torch.eye(8))


def test_experts_that_no_token_reached_weigh_alike() -> None:
    zero = Moments(torch.zeros(2, 8, 8), torch.zeros(2))
    assert torch.equal(shrink(blend_experts(zero, "shared")).h, torch.eye(8).expand(2, 8, 8))
