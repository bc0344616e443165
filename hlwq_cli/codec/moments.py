"""Second moments of a layer's inputs, and what must be done to them before they weigh the errors of a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Prior = Literal["shared", "isotropic"]
"""What an expert's moments are blended with: the mean of all experts' moments, or the identity of their mean energy."""

DAMPING = 0.01
"""Added to the diagonal, as a fraction of its mean."""
_SHRINKAGE = 2.0
"""Off-diagonal moments are shrunk as if they had been measured with an error of this many tokens per input."""


@dataclass(frozen=True)
class Moments:
    """Sums of x x' over the inputs x of a linear layer, or only their diagonal.

    Attributes:
        h: float32 or float64 (inputs, inputs), or (experts, inputs, inputs) of experts; (inputs,) or (experts, inputs)
            if `is_diagonal`.
        count: number of tokens summed; of experts float64 (experts,), on the CPU or the device of `h`.
        is_diagonal: whether `h` holds only diagonals.
    """

    h: torch.Tensor
    count: float | torch.Tensor
    is_diagonal: bool = False

    @property
    def inputs(self) -> int:
        """Number of inputs of the layer."""
        return self.h.shape[-1]

    @property
    def has_experts(self) -> bool:
        """Whether the first dimension counts experts."""
        return self.h.dim() == (2 if self.is_diagonal else 3)

    @property
    def diagonal(self) -> torch.Tensor:
        """The diagonals, (..., inputs), in the memory of `h`."""
        return self.h if self.is_diagonal else self.h.diagonal(dim1=-2, dim2=-1)

    @property
    def counts(self) -> torch.Tensor:
        """`count` as float64 of the leading dimensions of `diagonal`, plus one, on the device of `h`."""
        lead = self.diagonal.shape[:-1]
        return torch.as_tensor(self.count, dtype=torch.float64, device=self.h.device).expand(lead)[..., None]


def blend_experts(moments: Moments, prior: Prior) -> Moments:
    """Add inputs / 2 tokens of a prior to the moments of each expert, so that rarely routed experts are usable.

    `shared` fits inputs that all experts have in common: those of gate and up. `isotropic` fits inputs that each
    expert makes itself: those of down. An expert that no token was routed to has the prior alone.

    Args:
        moments: of all experts of a layer; `h` is changed in place.
        prior: what to add.

    Returns:
        The moments in the same memory, with the larger counts.
    """
    h, count, tokens = moments.h, moments.counts, moments.inputs / 2
    total = count.sum().clamp(min=1.0).to(h.dtype)
    if prior == "shared":
        h += (h.sum(dim=0) / total) * tokens
    else:
        diagonal = moments.diagonal
        diagonal += diagonal.sum() / (total * moments.inputs) * tokens
    return Moments(h, count[..., 0] + tokens, moments.is_diagonal)


def shrink(moments: Moments) -> Moments:
    """Shrink moments toward their diagonal and damp them, as far as the number of tokens asks for it.

    With d inputs and n tokens, H becomes (1 - rho) H + rho diag(H) + .01 mean(diag H) I, rho = 2 d / (2 d + n). Moments
    that are all zero become the identity.

    Args:
        moments: of one layer, or of experts; `h` is changed in place.

    Returns:
        The moments in the same memory.
    """
    d, h, diagonal = moments.inputs, moments.h, moments.diagonal
    rho = (_SHRINKAGE * d / (_SHRINKAGE * d + moments.counts)).to(h.dtype)
    mean = diagonal.mean(dim=-1, keepdim=True)
    damped = torch.where(mean > 0, diagonal + DAMPING * mean, 1.0)
    if not moments.is_diagonal:
        h *= 1 - rho[..., None]
    diagonal.copy_(damped)
    return moments
