"""The plain GPTQ that hlwq is compared with: it must be as good as published, or the comparison is unfair."""

import torch

from scripts.peers.gptq import gptq, inverse_factor


def loss(weight: torch.Tensor, decoded: torch.Tensor, h: torch.Tensor) -> float:
    error = (weight - decoded).double()
    return float((error @ h.double() * error).sum())


def correlated(columns: int) -> torch.Tensor:
    x = torch.randn(2048, columns, generator=torch.Generator().manual_seed(0))
    x = x @ torch.randn(columns, columns, generator=torch.Generator().manual_seed(1)) * 0.3 + x
    return x.T @ x


def test_without_correlation_it_rounds_to_nearest() -> None:
    weight = torch.randn(8, 160, generator=torch.Generator().manual_seed(2))
    decoded, bits = gptq(weight, torch.eye(160), 64)
    for first in (0, 64, 128):  # the last group has 32 columns
        part, found = weight[:, first : first + 64], decoded[:, first : first + 64]
        step = (part.amax(1).clamp(min=0) - part.amin(1).clamp(max=0)) / 15
        assert bool(((part - found).abs() <= step[:, None] * 0.51).all())
    assert bits == 4 + 3 * 20 / 160


def test_feedback_cuts_the_loss_of_rounding() -> None:
    weight, h = torch.randn(16, 192, generator=torch.Generator().manual_seed(3)), correlated(192)
    plain, _ = gptq(weight, torch.eye(192), 64)
    fed, _ = gptq(weight, h, 64)
    assert loss(weight, fed, h) < 0.6 * loss(weight, plain, h)


def test_the_factor_is_that_of_the_inverse_and_unused_inputs_do_no_harm() -> None:
    h = correlated(96)
    h[5], h[:, 5] = 0, 0
    upper = inverse_factor(h.double())
    damped = h.double() + torch.eye(96) * 0.01 * h.diagonal().double().mean()
    damped[5, 5] += 1
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(96, dtype=torch.float64), atol=1e-6)
    decoded, _ = gptq(torch.randn(4, 96), h, 64)
    assert bool(decoded.isfinite().all())
