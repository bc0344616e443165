"""A linear layer that holds codes."""

from __future__ import annotations

import torch
from torch import nn

from hlwq_kernels.linear import coded_linear

from ..transformers_private import skip_initialization
from .format import QuantFormat
from .matrix import CodedMatrix


class HLWQLinear(CodedMatrix, nn.Linear):
    """nn.Linear whose weight is coded.

    Args:
        like: the layer it replaces, which may be on the meta device; this one takes over its bias.
        bits: width of a code.
        quant_format: how codes are read.
    """

    def __init__(self, like: nn.Linear, bits: int, quant_format: QuantFormat) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = like.in_features, like.out_features
        skip_initialization(self)
        self.hold((self.out_features, self.in_features), bits, quant_format, like.weight.dtype)
        self.bias = like.bias

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The decoded weight (out, in) in the layer's dtype; decoded on each access, unless execution is dense."""
        return self.decoded() if self.dense_weight is None else self.dense_weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply (..., in) to (..., out)."""
        if self.dense_weight is not None:
            return nn.functional.linear(input, self.dense_weight, self.bias)
        centroids = self.quant_format.centroids(self.bits, self.codes.device)
        return coded_linear(
            input, self.codes, self.scales, self._base, centroids, self.quant_format.block_size, self.bias
        )

    def extra_repr(self) -> str:
        """Describe shape and width."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"
