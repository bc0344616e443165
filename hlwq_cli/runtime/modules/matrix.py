"""What coded linear layers and embeddings share: one matrix in codes, and a tensor that decodes it on use."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from ..transformers_private import skip_initialization
from .format import CodedModule, QuantFormat


class CodedMatrix(CodedModule):
    """The coded half of a module with one weight; its buffers are named as on disk.

    Attributes:
        shape: (out, in) of the weight.
        bits: width of a code.
        quant_format: how codes are read.
        dense_weight: the decoded weight, if execution is dense.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    dense_weight: torch.Tensor | None

    def hold(self, shape: tuple[int, int], bits: int, quant_format: QuantFormat, dtype: torch.dtype) -> None:
        """Register empty buffers on the current default device."""
        self.shape, self.bits, self.quant_format, self.compute_dtype = shape, bits, quant_format, dtype
        self.hold_parts(quant_format.empty_parts(shape, bits))
        self.register_buffer("dense_weight", None, persistent=False)

    @property
    def _base(self) -> torch.Tensor | None:
        return getattr(self, "base", None)

    @property
    def device(self) -> torch.device:
        """The device that multiplies by the weight."""
        return self.codes.device if self.dense_weight is None else self.dense_weight.device

    def decoded(self) -> torch.Tensor:
        """Return the decoded weight (out, in) in the module's dtype."""
        if self.codes.is_meta:
            return torch.empty(self.shape, dtype=self.compute_dtype, device="meta")
        weight = self.quant_format.decode(self.codes, self.scales, self._base, self.bits, self.shape[1])
        return weight.to(self.compute_dtype)

    def decoded_row(self, row: int) -> torch.Tensor:
        """Return one decoded row of the weight, (in,)."""
        row %= self.shape[0]
        base = None if self._base is None else self._base[row : row + 1]
        codes, scales = self.codes[row : row + 1], self.scales[row : row + 1]
        return self.quant_format.decode(codes, scales, base, self.bits, self.shape[1])[0].to(self.compute_dtype)

    @property
    def widths(self) -> set[int]:
        """Widths of its codes."""
        return {self.bits}

    def materialize(self) -> None:
        """Decode the weight now, if the module's execution is dense on its device."""
        if self.dense_weight is None and self.quant_format.dense(self.codes.device):
            self.dense_weight = self.decoded()
            self.release()

    def decode_again(self) -> None:
        """Replace the values of the decoded weight where it is; see `CodedModule`."""
        if self.dense_weight is not None:
            self.dense_weight.copy_(self.decoded())
            self.release()


class DecodedWeight(torch.Tensor):
    """The weight of a coded matrix, decoded when its values are used: one row for one row, else all of it.

    Model code reads the dtype of embeddings with a quarter million rows at every step, and the row of one token.
    """

    # results of operations on it are plain tensors
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    matrix: CodedMatrix

    @staticmethod
    def __new__(cls, matrix: CodedMatrix) -> DecodedWeight:
        """Make a tensor without storage."""
        made: DecodedWeight = torch.Tensor._make_wrapper_subclass(
            cls, matrix.shape, dtype=matrix.compute_dtype, device=matrix.codes.device
        )
        made.matrix = matrix
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation on the part of the decoded weight that it needs."""
        if func is torch.ops.aten.select.int and args[1] == 0 and not args[0].is_meta:
            return args[0].matrix.decoded_row(args[2])
        args, kwargs = tree_map_only(cls, lambda weight: weight.matrix.decoded(), (args, kwargs or {}))
        return func(*args, **kwargs)


skip_initialization(DecodedWeight)
