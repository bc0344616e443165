"""What a checkpoint stores, by the names that modules have in vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..checkpoint import CodedCheckpoint, open_coded
from ..errors import CorruptError, UnsupportedError

_DROPPED = frozenset({"model", "language_model", "moe", "routed_experts", "linear"})
"""Levels of a module's path that transformers and vLLM do not share."""
_RENAMED = {"block_sparse_moe": "mlp"}
_EMBEDDINGS = frozenset({"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"})
_STACKS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class StoredMatrix:
    """A coded tensor.

    Attributes:
        name: as in the manifest: the module's path, with the parameter's name for stacks.
        shape: (out, in), or (experts, out, in).
        bits: width of a code.
        transposed: whether its module holds it as (..., in, out).
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    transposed: bool = False

    @property
    def rows(self) -> int:
        """Rows of the matrix, or of one matrix of a stack."""
        return self.shape[-2]

    @property
    def columns(self) -> int:
        """Columns, without padding."""
        return self.shape[-1]


class StoredTensors:
    """The coded tensors of a checkpoint, by module.

    Args:
        checkpoint: an open checkpoint.

    Attributes:
        path: where it is, for messages.
        block_size: weights that share a scale.
        scale: kind of block scale.
        codebooks: float32 centroids by width.
        names: names of all stored tensors.
    """

    def __init__(self, checkpoint: CodedCheckpoint) -> None:
        settings = checkpoint.settings
        transposed = set(settings.get("transposed", ()))
        self.path = str(checkpoint.folder)
        self.block_size, self.scale, self.codebooks = settings["block_size"], settings["scale"], checkpoint.codebooks
        self.names = frozenset(checkpoint.tensors)
        self.by_name = {
            r.name: StoredMatrix(r.name, r.shape, r.bits, r.name in transposed) for r in checkpoint.manifest.coded
        }
        self._by_key = _by_key(self.by_name, lambda name: name)
        self._kept = {key_of(k.name.removesuffix(".weight")) for k in checkpoint.manifest.kept}
        self._mapped: set[int] = set()

    def add_names(self, rename: Callable[[str], str | None], mapper: int) -> None:
        """Know the coded tensors also by the names that a model's mapping gives them."""
        if mapper in self._mapped:
            return
        self._mapped.add(mapper)
        self._by_key = {**self._by_key, **_by_key(self.by_name, rename)}

    def matrix(self, module: str) -> StoredMatrix | None:
        """Return the coded weight of a module; None if it is not coded."""
        found = self._by_key.get(key_of(module))
        return found if found is not None and len(found.shape) == 2 else None

    def embeddings(self, shape: tuple[int, int]) -> StoredMatrix | None:
        """Return the coded token embeddings of a shape (tokens, columns), if there are any, and none like them."""
        found = [m for m in self.by_name.values() if m.shape == shape and m.name.rpartition(".")[2] in _EMBEDDINGS]
        return found[0] if len(found) == 1 else None

    def stacks(self, module: str) -> tuple[StoredMatrix, StoredMatrix] | None:
        """Return the coded gate and up, and the coded down matrices of an experts module, if they are coded."""
        gate_up, down = (self._by_key.get(f"{key_of(module)}.{name}") for name in _STACKS)
        if gate_up is None or down is None or not len(gate_up.shape) == len(down.shape) == 3:
            return None
        return gate_up, down

    def is_kept(self, module: str) -> bool:
        """Return whether a module's weight is stored as it was."""
        return key_of(module) in self._kept


def key_of(name: str) -> str:
    """Return a module's path without the levels that differ between transformers and vLLM."""
    parts = name.split(".")
    return ".".join(_RENAMED.get(part, part) for part in parts if part not in _DROPPED)


def _by_key(by_name: Mapping[str, StoredMatrix], rename: Callable[[str], str | None]) -> dict[str, StoredMatrix]:
    found: dict[str, StoredMatrix] = {}
    for name, matrix in by_name.items():
        renamed = rename(name)
        if renamed is None:
            continue
        other = found.setdefault(key_of(renamed), matrix)
        if other is not matrix:
            raise UnsupportedError(f"{other.name} and {name} cannot be told apart in vLLM.")
    return found


@lru_cache(maxsize=4)
def stored_tensors(path: str, revision: str | None) -> StoredTensors:
    """Return what a folder or Hub repository stores; only headers and small files are read.

    Raises:
        HlwqError: see `open_coded`.
    """
    checkpoint = open_coded(path, revision)
    try:
        return StoredTensors(checkpoint)
    finally:
        checkpoint.close()


def check_parts(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise CorruptError unless a stored tensor has the shape and type that its record implies."""
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise CorruptError(
            f"{name} is {list(tensor.shape)} {tensor.dtype}, not {list(shape)} {dtype}.", "Fetch the checkpoint again."
        )
