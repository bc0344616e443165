"""From a checkpoint's tensors to the layers of a vLLM model: codes to layers that hold codes, weights to all others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.utils import get_pp_missing_layer_names

from hlwq_kernels import decode_rows
from hlwq_kernels.codes import SCALE_FORMATS, part_name

from ..errors import CorruptError
from .embedding import HLWQEmbeddingMethod
from .gemma4 import fuse_layers
from .linear import HLWQLinearMethod, check_stored
from .moe import HLWQMoEMethod
from .stored import StoredMatrix, StoredTensors, key_of, stored_tensors

Method = HLWQLinearMethod | HLWQMoEMethod | HLWQEmbeddingMethod
_METHODS = (HLWQLinearMethod, HLWQMoEMethod, HLWQEmbeddingMethod)


def load_codes(
    weights: Iterable[tuple[str, torch.Tensor]], model: nn.Module, model_config: Any
) -> Iterator[tuple[str, torch.Tensor]]:
    """Load coded tensors into the layers that hold codes, and yield the rest for the model to load.

    Coded tensors of other layers, such as those of towers that vLLM builds without quantization, are yielded as
    decoded weights.

    Args:
        weights: stored tensors, by their names.
        model: of vLLM.
        model_config: of vLLM.

    Raises:
        CorruptError: a tensor is missing, or does not have the stated shape or type.
    """
    stored = stored_tensors(model_config.model, model_config.revision)
    parts = _parts(stored)
    takers = _takers(model)
    for _, method in (found for layers in takers.values() for found in layers):
        method.loaded.clear()  # weights may be loaded again
    elsewhere = tuple(f"{key_of(name.rstrip('.'))}." for name in get_pp_missing_layer_names(model))
    waiting: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in weights:
        if name not in stored.names:
            continue  # a sidecar file's
        if name not in parts:
            yield name, tensor
            continue
        matrix, part = parts[name]
        check_stored(matrix, part, tensor, stored)
        for layer, method in takers.get(matrix.name, ()):
            method.load(layer, matrix, part, tensor)
        if matrix.name in takers or f"{key_of(matrix.name)}.".startswith(elsewhere):
            continue
        waiting[matrix.name][part] = tensor
        if len(waiting[matrix.name]) == len(SCALE_FORMATS[stored.scale].parts):
            yield _decoded(matrix, waiting.pop(matrix.name), stored, model_config.dtype)
    _check_complete(takers, waiting)
    fuse_layers(model)


def _parts(stored: StoredTensors) -> dict[str, tuple[StoredMatrix, str]]:
    """Return which part of which coded tensor each stored tensor is."""
    return {
        part_name(matrix.name, part, len(matrix.shape)): (matrix, part)
        for matrix in stored.by_name.values()
        for part in SCALE_FORMATS[stored.scale].parts
    }


def _takers(model: nn.Module) -> dict[str, list[tuple[Any, Method]]]:
    """Return the layers that hold codes, by the names of their coded tensors."""
    found: dict[str, list[tuple[Any, Method]]] = defaultdict(list)
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, _METHODS):
            for matrix in {m.name: m for m in method.matrices}:
                found[matrix].append((layer, method))
    return dict(found)


def _decoded(
    matrix: StoredMatrix, parts: dict[str, torch.Tensor], stored: StoredTensors, dtype: torch.dtype
) -> tuple[str, torch.Tensor]:
    """Return the name and the decoded weight of a coded tensor, as a plain checkpoint has them."""
    base = parts.get("base")
    rows = decode_rows(
        parts["codes"].flatten(0, -2),
        parts["scales"].flatten(0, -2),
        None if base is None else base.flatten(),
        stored.codebooks[matrix.bits].to(parts["codes"].device),
        stored.block_size,
        matrix.columns,
        dtype,
    )
    weight = rows.view(matrix.shape)
    if matrix.transposed:
        weight = weight.transpose(-1, -2).contiguous()
    return (matrix.name if len(matrix.shape) == 3 else f"{matrix.name}.weight"), weight


def _check_complete(takers: dict[str, list[tuple[Any, Method]]], waiting: dict[str, Any]) -> None:
    missing = {name for found in takers.values() for _, method in found for name in method.missing()}
    missing |= {f"parts of {name}" for name in waiting}
    if missing:
        some = ", ".join(sorted(missing)[:5])
        raise CorruptError(f"The checkpoint lacks {some} ({len(missing)} tensors).", "Fetch it again.")
