"""Which entry of an imatrix belongs to which tensor of a checkpoint, by the tables of the package `gguf`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from importlib.util import find_spec

from ...errors import HlwqError, UsageError

_ALIASES = {"mistral": "llama", "mixtral": "llama", "cohere": "commandr"}
"""Model types that llama.cpp converts to an architecture of another name."""
_BLOCK = re.compile(r"blk\.(\d+)\.")
_MADE_BY_CONVERSION = re.compile(r"blk\.\d+\.attn_[kv]_b\.weight")
"""Weights that llama.cpp makes of others when it converts a model; their inputs are not those of the original."""


def map_names(entries: Collection[str], sources: Iterable[str], model_type: str) -> dict[str, str]:
    """Return the entry of each source tensor that has one.

    Args:
        entries: names of weights in GGUF.
        sources: names of the checkpoint's tensors.
        model_type: of its config.

    Raises:
        UsageError: an entry belongs to no tensor; all such names are listed.
        HlwqError: the package `gguf` is missing.
    """
    if find_spec("gguf") is None:
        raise HlwqError("Reading an imatrix needs the package gguf.", "Run `pip install 'hlwq[imatrix]'`.")
    names = list(sources)
    layers = 1 + max((int(block[1]) for name in entries if (block := _BLOCK.match(name))), default=0)
    best: dict[str, str] = {}
    for architecture in _architectures(model_type):
        found = _map(entries, names, architecture, layers)
        if len(set(found.values())) > len(set(best.values())):
            best = found
        if not _left(entries, best):
            return best
    left = _left(entries, best)
    raise UsageError(
        f"{len(left)} names of the imatrix belong to no tensor of this model: {', '.join(left)}.",
        "Give the imatrix of this model.",
    )


def _left(entries: Collection[str], found: dict[str, str]) -> list[str]:
    mapped = set(found.values())
    return sorted(name for name in entries if name not in mapped and not _MADE_BY_CONVERSION.fullmatch(name))


def _architectures(model_type: str) -> list[str]:
    """Return all architectures of llama.cpp, those named like the model's type first."""
    from gguf import MODEL_ARCH_NAMES

    wanted = _plain(model_type.removesuffix("_text"))
    wanted = _ALIASES.get(wanted, wanted)
    return sorted(MODEL_ARCH_NAMES.values(), key=lambda name: (_plain(name) != wanted, name != "llama", name))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _map(entries: Collection[str], sources: list[str], architecture: str, layers: int) -> dict[str, str]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(kind, layers)
    found = {}
    for source in sources:
        for key in _keys(source):
            entry = f"{table.get_name(key)}.weight"
            if entry in entries:
                found[source] = entry
                break
    return found


def _keys(source: str) -> list[str]:
    """Return the names that llama.cpp's converter may know a tensor by."""
    name = re.sub(r"(^|\.)language_model\.", r"\1", source.removesuffix(".weight"))
    name = re.sub(r"\.experts\.\d+\.", ".experts.", name)  # the converter stacks experts
    return [name, re.sub(r"gate_up_proj$", "gate_proj", name), re.sub(r"gate_up_proj$", "up_proj", name)]
