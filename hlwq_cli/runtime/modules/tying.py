"""Tied weights of which one is coded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from torch import nn

from ...errors import UnsupportedError
from ..transformers_private import override_resize, tied_weights, untie
from .embedding import HLWQEmbedding, HLWQTiedLinear
from .matrix import CodedMatrix


def untie_coded(model: Any, coded: Collection[str], stored: Collection[str]) -> dict[str, str]:
    """Stop transformers from tying coded parameters; call it before modules are replaced.

    If the file stores both of a pair, they differ, whatever the config says: then each keeps its own tensors.

    Args:
        model: of transformers, with its original modules.
        coded: names of its coded parameters.
        stored: names of the tensors that the checkpoint stores, as in the model.

    Returns:
        The paths of modules whose weight is not stored, each with the path of the coded module whose weight they share.
    """
    groups: dict[str, list[str]] = {}
    for tied, source in tied_weights(model).items():
        groups.setdefault(source, [source]).append(tied)
    readers: dict[str, str] = {}
    untied: set[str] = set()
    for source, names in groups.items():
        held = [name for name in names if name in coded]
        if not held:
            continue
        if source in stored and source not in coded:
            untied.update(held)
            continue
        untied.update(names)
        readers |= {_path(name): _path(held[0]) for name in names if name not in coded and name not in stored}
    untie(model, untied.intersection(tied_weights(model)))
    return readers


def _path(name: str) -> str:
    return name.rpartition(".")[0]


def tie_coded(model: Any, readers: Mapping[str, str]) -> None:
    """Let linear layers read the weights of coded modules.

    Args:
        model: of transformers, with its coded modules in place.
        readers: paths of layers, each with the path of the module that it reads, as `untie_coded` returns them.

    Raises:
        UnsupportedError: a module is tied to a coded one, and either of them is not a matrix of a linear layer.
    """
    for path, coded_path in readers.items():
        module, coded = model.get_submodule(path), model.get_submodule(coded_path)
        if not isinstance(module, nn.Linear) or not isinstance(coded, CodedMatrix):
            what = "embeddings" if isinstance(coded, HLWQEmbedding) else coded_path
            raise UnsupportedError(
                f"{path} of {type(model).__name__} is tied to coded {what}, but is not a linear layer.",
                "Quantize the model with its embeddings kept." if what == "embeddings" else f"Keep {coded_path}.",
            )
        model.set_submodule(path, HLWQTiedLinear(module, coded))


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
