"""A linear layer that holds codes."""

from __future__ import annotations

import torch
from torch import nn

from hlwq_kernels.linear import coded_linear

from .coded import Coding


class HLWQLinear(nn.Linear):
    """nn.Linear whose weight is coded; its buffers are named as on disk.

    Args:
        like: the layer it stands for, which may be on the meta device; its bias is taken over.
        bits: width of a code.
        coding: how codes are to be read.
    """

    dense_weight: torch.Tensor | None

    def __init__(self, like: nn.Linear, bits: int, coding: Coding) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = like.in_features, like.out_features
        self.bits, self.coding = bits, coding
        self.compute_dtype = like.weight.dtype
        self._is_hf_initialized = True  # there is nothing here for transformers to initialize
        for name, tensor in coding.empty_parts((self.out_features, self.in_features), bits).items():
            self.register_buffer(name, tensor)
        self.register_buffer("dense_weight", None, persistent=False)
        self.bias = like.bias

    @property
    def _base(self) -> torch.Tensor | None:
        return self._buffers.get("base")

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The decoded weight (out, in) in the layer's dtype; unless execution is dense, decoded on each access."""
        if self.dense_weight is not None:
            return self.dense_weight
        assert isinstance(self.codes, torch.Tensor)
        assert isinstance(self.scales, torch.Tensor)
        if self.codes.is_meta:
            return torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype, device="meta")
        weight = self.coding.decode(self.codes, self.scales, self._base, self.bits, self.in_features)
        return weight.to(self.compute_dtype)

    def settle(self) -> None:
        """Decode now, if that is how this layer is to be executed where it lies."""
        assert isinstance(self.codes, torch.Tensor)
        if self.dense_weight is None and self.coding.dense(self.codes.device):
            self.dense_weight = self.weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        if self.dense_weight is not None:
            return nn.functional.linear(input, self.dense_weight, self.bias)
        assert isinstance(self.codes, torch.Tensor)
        assert isinstance(self.scales, torch.Tensor)
        centroids = self.coding.centroids(self.bits, self.codes.device)
        return coded_linear(input, self.codes, self.scales, self._base, centroids, self.coding.block_size, self.bias)

    def extra_repr(self) -> str:
        """Shape and width."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"
