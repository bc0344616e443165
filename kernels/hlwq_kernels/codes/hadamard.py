"""The fast Walsh-Hadamard transform, as torch operations."""

from __future__ import annotations

import torch


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """Multiply the last dimension by the Sylvester (natural order) Hadamard matrix of entries +1 and -1.

    The result is not divided by sqrt(n): applied twice, the transform returns n * x. The butterflies run from
    neighbours outward. Each is one float addition and one subtraction, so every device rounds alike.

    Args:
        x: (..., n), n a power of two.

    Returns:
        (..., n), same dtype.
    """
    n = x.shape[-1]
    if n & (n - 1) or n == 0:
        raise ValueError(f"a Hadamard transform needs a power of two, not {n}")
    h = 1
    while h < n:
        pairs = x.reshape(*x.shape[:-1], n // (2 * h), 2, h)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack((a + b, a - b), dim=-2).reshape(x.shape)
        h *= 2
    return x


def tree_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum the last dimension (a power of two) by repeatedly adding the upper half to the lower.

    This is one fixed tree with the same rounding on every device, which `torch.sum` does not promise.
    """
    while x.shape[-1] > 1:
        h = x.shape[-1] // 2
        x = x[..., :h] + x[..., h:]
    return x[..., 0]
