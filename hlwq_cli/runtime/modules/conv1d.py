"""transformers' Conv1D with codes: a linear layer whose weight lies as (in, out)."""

from __future__ import annotations

import torch

from hlwq_kernels.linear import coded_linear

from .parameters import HLWQModule


class HLWQConv1D(HLWQModule):
    """The coded part of a Conv1D; it multiplies by codes as a linear layer does."""

    bias: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply (..., in) to (..., out)."""
        if self.dense:
            result: torch.Tensor = super().forward(x)
            return result
        codes, scales, base = self._parts("weight")
        centroids = self.quant_format.centroids(self.bits["weight"], codes.device)
        return coded_linear(x, codes, scales, base, centroids, self.quant_format.block_size, self.bias)
