"""Weights to code with error feedback, and factors of moments."""

from __future__ import annotations

import torch

from hlwq_cli.codec import Moments, feedback_factor, shrink
from hlwq_kernels.encode import FeedbackFactor


def factor_of(experts: int, columns: int, block_size: int) -> FeedbackFactor:
    """The factor of moments of inputs that are correlated and of very different size."""
    generator = torch.Generator().manual_seed(columns)
    common = torch.randn(experts, 600, columns // 8, generator=generator, dtype=torch.float64)
    mixing = torch.randn(experts, columns // 8, columns, generator=generator, dtype=torch.float64)
    own = torch.randn(experts, 600, columns, generator=generator, dtype=torch.float64)
    sizes = torch.exp(torch.randn(experts, 1, columns, generator=generator, dtype=torch.float64))
    x = (common @ mixing + own) * sizes
    return feedback_factor(shrink(Moments(x.mT @ x, torch.full((experts,), 600.0))), block_size)


def spread_weights(experts: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Normal weights whose rows differ in size, float32."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-3, 1, experts * rows).reshape(experts, rows, 1)
    return torch.randn(experts, rows, columns, generator=generator) * sizes
