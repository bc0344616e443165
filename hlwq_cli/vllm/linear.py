"""Linear layers of vLLM from codes: merged or not, of one width or several, on any rank of tensor parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearMethodBase, QKVParallelLinear

from hlwq_kernels import coded_linear, decode_rows
from hlwq_kernels.codes import SCALE_FORMATS, QuantizedWeight, layout

from ..errors import UnsupportedError
from .shards import Columns
from .stored import StoredMatrix, StoredTensors, check_parts

if TYPE_CHECKING:
    from .config import Options


@dataclass(frozen=True)
class Piece:
    """Rows of a coded matrix that a rank holds.

    Attributes:
        matrix: the stored matrix.
        first: its first row held.
        rows: how many.
    """

    matrix: StoredMatrix
    first: int
    rows: int


@dataclass(frozen=True)
class Group:
    """Neighbouring pieces of one width: one matrix, and one launch.

    Attributes:
        suffix: what follows `codes`, `scales` and `base` in the names of its parameters.
        pieces: in the order of the rows.
    """

    suffix: str
    pieces: tuple[Piece, ...]

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.pieces[0].matrix.bits

    @property
    def rows(self) -> int:
        """Rows of all pieces."""
        return sum(p.rows for p in self.pieces)


def held_pieces(
    matrices: Sequence[StoredMatrix], sizes: Sequence[int], shares: Sequence[int], ranks: Sequence[int], name: str
) -> list[Piece]:
    """Return the rows that a rank holds of the matrices of a merged layer.

    Args:
        matrices: in the order of the rows; each is one part of the layer or several whole ones.
        sizes: rows of each part, on all ranks together.
        shares: rows of each part that a rank holds.
        ranks: which share of each part this rank holds.
        name: of the layer, for messages.

    Raises:
        UnsupportedError: the matrices do not have the rows of the parts.
    """
    pieces, part = [], 0
    for matrix in matrices:
        at = 0
        while part < len(sizes) and at < matrix.rows:
            pieces.append(Piece(matrix, at + ranks[part] * shares[part], shares[part]))
            at += sizes[part]
            part += 1
        if at != matrix.rows:
            break
    if part != len(sizes) or sum(m.rows for m in matrices) != sum(sizes):
        raise UnsupportedError(
            f"{name} has parts of {list(sizes)} rows in vLLM, but the checkpoint has {[m.rows for m in matrices]}."
        )
    return pieces


def groups_of(pieces: Sequence[Piece]) -> tuple[Group, ...]:
    """Join neighbouring pieces of one width."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        if runs and runs[-1][-1].matrix.bits == piece.matrix.bits:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return tuple(Group(f"_{i}" if i else "", tuple(run)) for i, run in enumerate(runs))


class HLWQLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """How vLLM creates, loads and runs a linear layer from codes.

    Args:
        stored: the checkpoint's tensors.
        matrices: of the layer, in the order of its rows.
        options: of the user.
        name: of the layer, for messages.
    """

    def __init__(self, stored: StoredTensors, matrices: Sequence[StoredMatrix], options: Options, name: str) -> None:
        self.stored, self.matrices, self.options, self.name = stored, tuple(matrices), options, name
        self.groups: tuple[Group, ...] = ()
        self.columns = Columns(0, matrices[0].columns, stored.block_size)
        self.loaded: set[tuple[str, str]] = set()
        self.is_dense = False

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
        """Register the parameters of the rank's codes; see LinearMethodBase."""
        if any(m.columns != input_size for m in self.matrices):
            raise UnsupportedError(
                f"{self.name} has {input_size} inputs in vLLM, but the checkpoint has "
                f"{[m.columns for m in self.matrices]}."
            )
        rank = getattr(layer, "tp_rank", 0)
        start = rank * input_size_per_partition if input_size_per_partition != input_size else 0
        self.columns = Columns(start, start + input_size_per_partition, self.stored.block_size)
        sizes, ranks = _parts_of(layer, output_partition_sizes, output_size, rank)
        self.groups = groups_of(held_pieces(self.matrices, sizes, output_partition_sizes, ranks, self.name))
        for group in self.groups:
            shape = (group.rows, self.columns.blocks * self.stored.block_size)
            for part, (size, dtype) in layout(shape, group.bits, self.stored.block_size, self.stored.scale).items():
                layer.register_parameter(f"{part}{group.suffix}", frozen(torch.zeros(size, dtype=dtype)))
            layer.register_buffer(
                f"centroids{group.suffix}", self.stored.codebooks[group.bits].to(layer.codes.device), persistent=False
            )
        # vLLM and its adapters ask a weight for its device and type
        layer.register_parameter("weight", frozen(torch.empty(0, dtype=params_dtype)))

    def load(self, layer: Any, matrix: StoredMatrix, part: str, tensor: torch.Tensor) -> None:
        """Copy a stored tensor's rows and columns into the parameters of this rank."""
        self.loaded.add((matrix.name, part))
        for group in self.groups:
            parameter, at = getattr(layer, f"{part}{group.suffix}"), 0
            for piece in group.pieces:
                if piece.matrix.name == matrix.name:
                    rows = held_columns(tensor[piece.first : piece.first + piece.rows], part, matrix, self.columns)
                    parameter.data[at : at + piece.rows].copy_(rows)
                at += piece.rows

    def missing(self) -> list[str]:
        """Return the stored tensors that were not loaded."""
        wanted = {(m.name, part) for m in self.matrices for part in self.parts}
        return sorted(f"{name}.{part}" for name, part in wanted - self.loaded)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Decode the weight where the layer's execution is dense."""
        self.is_dense = self.options.is_dense(layer.codes.device)
        if self.is_dense:
            layer.weight = frozen(self.decoded(layer, layer.weight.dtype))

    def decoded(self, layer: Any, dtype: torch.dtype) -> torch.Tensor:
        """Return the rank's weight: (rows, columns)."""
        parts = [decode_rows(*self.weight(layer, g), self.columns.held, dtype) for g in self.groups]
        return torch.cat(parts)[:, self.columns.lead :].contiguous()

    def weight(self, layer: Any, group: Group) -> QuantizedWeight:
        """Return a group's parameters as kernels take them."""
        suffix = group.suffix
        base = getattr(layer, f"base{suffix}") if "base" in self.parts else None
        codes, scales, centroids = (getattr(layer, f"{name}{suffix}") for name in ("codes", "scales", "centroids"))
        return QuantizedWeight(codes, scales, base, centroids, self.stored.block_size)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return x W^T + bias: (..., columns) to (..., rows)."""
        if self.is_dense:
            return torch.nn.functional.linear(x, layer.weight, bias)
        x = self.columns.pad(x)
        if len(self.groups) == 1:
            return coded_linear(x, *self.weight(layer, self.groups[0]), bias)
        parts, at = [], 0
        for group in self.groups:
            own = None if bias is None else bias[at : at + group.rows]
            parts.append(coded_linear(x, *self.weight(layer, group), own))
            at += group.rows
        return torch.cat(parts, dim=-1)


def _parts_of(layer: Any, shares: list[int], output_size: int, rank: int) -> tuple[list[int], list[int]]:
    """Return the rows of each part on all ranks together, and which share of each a rank holds."""
    if isinstance(layer, QKVParallelLinear):
        heads, key_heads = layer.total_num_heads, layer.total_num_kv_heads
        sizes = [heads * layer.head_size, key_heads * layer.head_size, key_heads * layer.v_head_size]
        shared = rank // layer.num_kv_head_replicas
        return sizes, [rank, shared, shared]
    sizes = list(layer.output_sizes) if len(shares) > 1 else [output_size]
    return sizes, [rank if share != size else 0 for share, size in zip(shares, sizes, strict=True)]


def held_columns(tensor: torch.Tensor, part: str, matrix: StoredMatrix, columns: Columns) -> torch.Tensor:
    """Return the columns of a stored tensor (..., columns) that a rank holds; `base` has one value a row."""
    if part == "codes":
        return columns.codes(tensor, matrix.bits)
    return columns.scales(tensor) if part == "scales" else tensor


def check_stored(matrix: StoredMatrix, part: str, tensor: torch.Tensor, stored: StoredTensors) -> None:
    """Raise CorruptError unless a stored tensor has the shape and type that its record implies."""
    shape, dtype = layout(matrix.shape, matrix.bits, stored.block_size, stored.scale)[part]
    check_parts(f"{part} of {matrix.name}", tensor, shape, dtype)


def frozen(tensor: torch.Tensor) -> nn.Parameter:
    """Return a parameter without gradients."""
    return nn.Parameter(tensor, requires_grad=False)
