"""Tied weights of which one is coded."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from torch import nn

from ...errors import UnsupportedError
from ..transformers_private import override_resize, tied_weights, untie
from .embedding import HLWQEmbedding, HLWQTiedLinear
from .matrix import CodedMatrix


def tie_coded(model: Any, stored: Collection[str]) -> None:
    """Let heads read the coded embeddings that they are tied to, and stop transformers from tying them.

    If the file stores both, they differ, whatever the config says: then each keeps its own tensors.

    Args:
        model: of transformers, with its coded modules in place.
        stored: names of the checkpoint's tensors, as in the model.

    Raises:
        UnsupportedError: a module other than a linear layer is tied to coded embeddings.
    """
    for tied, source in tied_weights(model).items():
        modules = [model.get_submodule(name.rpartition(".")[0]) for name in (tied, source)]
        if not any(isinstance(module, CodedMatrix) for module in modules):
            continue
        untie(model, tied)
        if isinstance(modules[1], HLWQEmbedding) and not isinstance(modules[0], CodedMatrix) and tied not in stored:
            _tie(model, tied.rpartition(".")[0], *modules)


def _tie(model: Any, path: str, module: nn.Module, embedding: HLWQEmbedding) -> None:
    if not isinstance(module, nn.Linear):
        raise UnsupportedError(
            f"{path} of {type(model).__name__} is tied to coded embeddings, but is not a linear layer.",
            "Quantize the model with its embeddings kept.",
        )
    model.set_submodule(path, HLWQTiedLinear(module, embedding))


def refuse_resizing(model: Any) -> None:
    """Make `resize_token_embeddings` refuse to resize coded embeddings, which would leave the model half converted."""
    embedding = model.get_input_embeddings()
    if isinstance(embedding, HLWQEmbedding):
        override_resize(model, partial(_resize, embedding))


def _resize(
    embedding: HLWQEmbedding,
    new_num_tokens: int | None = None,
    pad_to_multiple_of: int | None = None,
    mean_resizing: bool = True,
) -> nn.Embedding:
    rows = embedding.num_embeddings
    wanted = rows if new_num_tokens is None else new_num_tokens
    if wanted + -wanted % (pad_to_multiple_of or 1) != rows:
        raise UnsupportedError(
            f"These {rows:,} token embeddings are coded and cannot be resized.",
            "Resize the unquantized model and quantize that, or keep its embeddings.",
        )
    return embedding
