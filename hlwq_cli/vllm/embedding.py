"""Embeddings and heads of vLLM from codes; a tied head multiplies by the codes of the embeddings."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from hlwq_kernels import coded_linear, decode_rows
from hlwq_kernels.codes import SCALE_FORMATS, QuantizedWeight, layout

from ..errors import UnsupportedError
from .linear import frozen
from .stored import StoredMatrix, StoredTensors

_TIED = "hlwq_tied_to"


class HLWQEmbeddingMethod(QuantizeMethodBase):  # type: ignore[misc]
    """How vLLM creates, loads and runs embeddings or a head from codes.

    Args:
        stored: the checkpoint's tensors.
        matrix: of the layer; None for a head that is tied to embeddings.
        name: of the layer, for messages.
    """

    def __init__(self, stored: StoredTensors, matrix: StoredMatrix | None, name: str) -> None:
        self.stored, self.matrix, self.name = stored, matrix, name
        self.loaded: set[str] = set()
        self.columns, self.dtype = 0 if matrix is None else matrix.columns, torch.get_default_dtype()

    @property
    def matrices(self) -> tuple[StoredMatrix, ...]:
        """The layer's own matrix, if it has one."""
        return () if self.matrix is None else (self.matrix,)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors that store a matrix."""
        return SCALE_FORMATS[self.stored.scale].parts

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register the parameters of the rank's rows; see QuantizeMethodBase."""
        self.dtype = params_dtype
        weight = frozen(torch.empty(0, dtype=params_dtype))
        setattr(weight, _TIED, layer)  # so that a head which takes over the weight finds the codes
        layer.register_parameter("weight", weight)
        if self.matrix is None:
            return
        if self.matrix.columns != input_size:
            raise UnsupportedError(f"{self.name} has {input_size} columns in vLLM, but {self.matrix.columns} stored.")
        shape = (sum(output_partition_sizes), input_size)
        for part, (size, dtype) in layout(shape, self.matrix.bits, self.stored.block_size, self.stored.scale).items():
            layer.register_parameter(part, frozen(torch.zeros(size, dtype=dtype)))
        centroids = self.stored.codebooks[self.matrix.bits].to(layer.codes.device)
        layer.register_buffer("centroids", centroids, persistent=False)

    def load(self, layer: Any, matrix: StoredMatrix, part: str, tensor: torch.Tensor) -> None:
        """Copy the rank's rows; rows that pad the vocabulary keep scale 0."""
        self.loaded.add(part)
        first, last = layer.shard_indices.org_vocab_start_index, layer.shard_indices.org_vocab_end_index
        if matrix.rows < last:
            raise UnsupportedError(f"{self.name} has {last} rows in vLLM, but {matrix.rows} stored.")
        getattr(layer, part).data[: last - first].copy_(tensor[first:last])

    def missing(self) -> list[str]:
        """Return the stored tensors that were not loaded."""
        return sorted(f"{m.name}.{part}" for m in self.matrices for part in set(self.parts) - self.loaded)

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        """Let a head use the codes of embeddings; see QuantizeMethodBase."""
        for part in self.parts:
            layer.register_parameter(part, getattr(embed_tokens, part))
        layer.register_buffer("centroids", embed_tokens.centroids, persistent=False)
        self.columns = embed_tokens.quant_method.columns
        return layer

    def process_weights_after_loading(self, layer: Any) -> None:
        """Tie a head whose model has given it the weight of the embeddings.

        Raises:
            UnsupportedError: the head has no codes and is tied to none.
        """
        if hasattr(layer, "codes"):
            return
        embeddings = getattr(layer.weight, _TIED, layer)
        if not hasattr(embeddings, "codes"):
            raise UnsupportedError(f"{self.name} is tied to coded embeddings in a way that the plugin does not know.")
        self.tie_weights(layer, embeddings)

    def weight(self, layer: Any) -> QuantizedWeight:
        """Return the parameters as kernels take them."""
        base = layer.base if "base" in self.parts else None
        return QuantizedWeight(layer.codes, layer.scales, base, layer.centroids, self.stored.block_size)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits of this rank's rows: (..., columns) to (..., rows)."""
        return coded_linear(x, *self.weight(layer), bias)

    def embedding(self, layer: Any, input_: torch.Tensor) -> torch.Tensor:
        """Return the rows of token ids: (...) to (..., columns)."""
        codes, scales, base, centroids, block_size = self.weight(layer)
        ids = input_.reshape(-1)
        rows = decode_rows(
            codes.index_select(0, ids),
            scales.index_select(0, ids),
            None if base is None else base.index_select(0, ids),
            centroids,
            block_size,
            self.columns,
            self.dtype,
        )
        return rows.reshape(*input_.shape, self.columns)
