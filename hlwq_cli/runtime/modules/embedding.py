"""Embeddings that hold codes, and linear layers tied to coded modules."""

from __future__ import annotations

import torch
from torch import nn

from hlwq_kernels import decode_rows

from ..transformers_private import change_class, skip_initialization
from .format import QuantFormat
from .linear import HLWQLinear
from .matrix import CodedMatrix, DecodedWeight


class HLWQEmbedding(CodedMatrix, nn.Embedding):
    """nn.Embedding whose weight is coded; a look-up decodes only the rows it needs.

    Model families have embedding classes of their own, which scale the rows: `code_embedding` derives from both.
    """

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The weight (rows, columns) in the module's dtype; decoded on use, unless execution is dense."""
        if self.dense_weight is not None:
            return self.dense_weight
        # torch.compile drops the decoding where only the dtype is used
        return self.decoded() if torch.compiler.is_compiling() else DecodedWeight(self)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return rows for token ids, (...) to (..., columns)."""
        if self.dense_weight is not None:
            return nn.functional.embedding(input, self.dense_weight)
        ids = input.reshape(-1)
        codes, scales = self.codes.index_select(0, ids), self.scales.index_select(0, ids)
        base = None if self._base is None else self._base.index_select(0, ids)
        centroids = self.quant_format.centroids(self.bits, self.codes.device)
        columns = self.shape[1]
        rows = decode_rows(codes, scales, base, centroids, self.quant_format.block_size, columns, self.compute_dtype)
        return rows.reshape(*input.shape, columns)

    def extra_repr(self) -> str:
        """Shape and width."""
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}"


class HLWQTiedLinear(HLWQLinear):
    """A linear layer without a weight of its own, which multiplies by that of coded embeddings or of another layer.

    It holds no buffers: two modules that share a buffer would each get a copy when the model is moved.

    Args:
        like: the layer it replaces; it takes over its bias.
        matrix: the embeddings or the linear layer it is tied to.
    """

    def __init__(self, like: nn.Linear, matrix: CodedMatrix) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = like.in_features, like.out_features
        skip_initialization(self)
        self.tied_to = (matrix,)  # in a tuple it is no submodule
        self.shape, self.bits, self.quant_format = matrix.shape, matrix.bits, matrix.quant_format
        self.compute_dtype = like.weight.dtype
        self.bias = like.bias

    @property
    def codes(self) -> torch.Tensor:  # type: ignore[override]
        """The other module's codes."""
        return self.tied_to[0].codes

    @property
    def scales(self) -> torch.Tensor:  # type: ignore[override]
        """The other module's scales."""
        return self.tied_to[0].scales

    @property
    def _base(self) -> torch.Tensor | None:
        return self.tied_to[0]._base

    @property
    def dense_weight(self) -> torch.Tensor | None:  # type: ignore[override]
        """The other module's decoded weight, if execution is dense."""
        return self.tied_to[0].dense_weight

    def materialize(self) -> None:
        """Do nothing: the other module decodes its weight itself."""

    def decode_again(self) -> None:
        """Do nothing: the other module decodes its weight itself."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply (..., in) to (..., out), also if a device map put the other module on another device."""
        return super().forward(input.to(self.device)).to(input.device)


_classes: dict[type[nn.Embedding], type[nn.Embedding]] = {nn.Embedding: HLWQEmbedding}


def _coded_class(original: type[nn.Embedding]) -> type[nn.Embedding]:
    """Return a family's class with the coded look-up in place of nn.Embedding's."""
    if original not in _classes:
        bases = (original, HLWQEmbedding)
        _classes[original] = type(f"HLWQ{original.__name__}", bases, {"__doc__": HLWQEmbedding.__doc__})
    return _classes[original]


def code_embedding(module: nn.Embedding, bits: int, quant_format: QuantFormat) -> None:
    """Make embeddings on the meta device hold codes instead of their weight, in place."""
    shape, dtype = (module.num_embeddings, module.embedding_dim), module.weight.dtype
    del module.weight
    change_class(module, _coded_class(type(module)))
    assert isinstance(module, HLWQEmbedding)
    module.hold(shape, bits, quant_format, dtype)
