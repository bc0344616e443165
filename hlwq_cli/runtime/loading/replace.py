"""Replacing a model's modules by coded ones, where a checkpoint stores codes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ...checkpoint.io import read_header
from ...errors import CorruptError
from ..modules.embedding import code_embedding
from ..modules.experts import code_experts
from ..modules.format import QuantFormat
from ..modules.linear import HLWQLinear
from ..modules.names import PARAMETERS, codes_name
from ..transformers_private import rename_stored

T = TypeVar("T")
Shape = tuple[int, ...]


def stored_shapes(files: Iterable[str]) -> dict[str, Shape]:
    """Return the shapes of the tensors in a checkpoint's shards, by stored name."""
    return {n: i.shape for file in files for n, i in read_header(Path(file), Path(file).name)[0].items()}


def codes_shapes(names: dict[str, Shape]) -> dict[str, Shape]:
    """Return the shapes of the `codes` tensors; () where only the other tensors of a parameter are stored."""
    expected: dict[str, Shape] = {codes: () for codes in map(codes_name, names) if codes}
    return {**expected, **{name: shape for name, shape in names.items() if codes_name(name) == name}}


def module_names(model: nn.Module, stored: dict[str, T]) -> dict[str, T]:
    """Return the same values by the names that the tensors have in the model's modules.

    Stored names may differ by prefixes, which the model's conversion mapping renames.
    """
    prefix = str(model.base_model_prefix)
    modules = {name: None for name, _ in model.named_modules()}
    found = {}
    for name, new in rename_stored(model, list(stored)).items():
        for candidate in (new, name, f"{prefix}.{new}", new.removeprefix(f"{prefix}.")):
            if candidate.rpartition(".")[0] in modules:
                found[candidate] = stored[name]
                break
    return found


def replace_modules(
    model: nn.Module, stored: dict[str, Shape], quant_format: QuantFormat, offloaded: bool = False
) -> None:
    """Replace modules by coded ones on the meta device, wherever `stored` lists a `codes` tensor.

    Args:
        model: of transformers, on the meta device.
        stored: shapes of `codes` tensors, by their names in the model.
        quant_format: how the codes are read.
        offloaded: whether experts stay off the GPU, see `code_experts`.

    Raises:
        CorruptError: codes for a module that is not a linear layer, an embedding or stacked experts.
    """
    experts: dict[str, dict[str, Shape]] = defaultdict(dict)
    unknown = []
    with torch.device("meta"):
        for name, shape in stored.items():
            path, _, last = name.rpartition(".")
            parameter = last.removeprefix("codes_")
            module = model.get_submodule(path)
            if last == "codes" and isinstance(module, nn.Linear | nn.Embedding):
                _replace_matrix(model, path, shape, quant_format)
            elif parameter in PARAMETERS and hasattr(module, parameter):
                experts[path][parameter] = shape
            elif shape:  # a parameter without codes is reported by transformers, as unexpected keys
                unknown.append(name)
        for path, shapes in experts.items():
            unknown += _replace_experts(model.get_submodule(path), path, shapes, quant_format, offloaded)
    if unknown:
        raise CorruptError(
            f"{type(model).__name__} has no module for {', '.join(sorted(unknown))}.",
            "Check that the checkpoint belongs to this model.",
        )


def _replace_matrix(model: nn.Module, path: str, shape: Shape, quant_format: QuantFormat) -> None:
    module = model.get_submodule(path)
    if isinstance(module, nn.Linear):
        bits = quant_format.bits_of(shape, module.in_features)
        model.set_submodule(path, HLWQLinear(module, bits, quant_format))
    elif isinstance(module, nn.Embedding):
        code_embedding(module, quant_format.bits_of(shape, module.embedding_dim), quant_format)


def _replace_experts(
    module: nn.Module, path: str, shapes: dict[str, Shape], quant_format: QuantFormat, offloaded: bool
) -> list[str]:
    """Replace one experts module; return the names of its codes if it does not have both parameters."""
    if set(shapes) != set(PARAMETERS):
        return [f"{path}.codes_{p}" for p in shapes]
    bits = {p: quant_format.bits_of(s, getattr(module, p).shape[-1]) for p, s in shapes.items()}
    code_experts(module, bits, quant_format, offloaded)
    return []
