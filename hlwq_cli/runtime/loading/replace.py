"""Replacing a model's modules by coded ones, where a checkpoint stores codes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ...checkpoint.io import read_header
from ...checkpoint.plan import is_conv1d, is_plain_linear
from ...errors import CorruptError
from ..modules.conv1d import HLWQConv1D
from ..modules.embedding import code_embedding
from ..modules.experts import code_experts, runs_codes
from ..modules.format import QuantFormat
from ..modules.linear import HLWQLinear
from ..modules.names import codes_name, parameter_of, tail_of
from ..modules.parameters import HLWQModule, ParameterCodes, code_parameters, coded_shape
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

    Parts of coded parameters are stored under the model's own names, with or without its base model's prefix.
    Checkpoints of earlier versions may differ by what the model's conversion mapping renames.
    """
    return {own: stored[name] for name, (own, _) in _in_modules(model, list(stored)).items()}


def own_names(model: nn.Module, stored: Sequence[str]) -> set[str]:
    """Return the names that the model's conversion mapping must not rename, as they are the model's own already."""
    found = {name: own for name, (own, is_renamed) in _in_modules(model, stored).items() if not is_renamed}
    return {*found, *found.values()}


def _in_modules(model: nn.Module, stored: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """Return what stored names are called in the model's modules, and whether its conversion mapping says so."""
    modules = {name for name, _ in model.named_modules()}
    found = {}
    for name, new in rename_stored(model, stored).items():
        renamed = with_prefix(model, new)
        for candidate in (*with_prefix(model, name), *renamed):
            if candidate.rpartition(".")[0] in modules:
                found[name] = candidate, candidate != name and candidate in renamed
                break
    return found


def with_prefix(model: Any, name: str) -> tuple[str, str, str]:
    """Return a name as it is, with the prefix of the base model, and without it."""
    prefix = f"{model.base_model_prefix}."
    return name, prefix + name, name.removeprefix(prefix)


def replace_modules(
    model: nn.Module,
    stored: Mapping[str, Shape],
    quant_format: QuantFormat,
    offloaded: bool = False,
    transposed: Collection[str] = (),
) -> None:
    """Replace modules by coded ones on the meta device, wherever `stored` lists a `codes` tensor.

    Args:
        model: of transformers, on the meta device.
        stored: shapes of `codes` tensors, by their names in the model.
        quant_format: how the codes are read.
        offloaded: whether experts stay off the GPU, see `code_experts`.
        transposed: names of the parameters that their modules hold as (..., in, out).

    Raises:
        CorruptError: codes for a module that cannot hold them.
    """
    found: dict[str, dict[str, ParameterCodes]] = defaultdict(dict)
    unknown = []
    for name, shape in stored.items():
        path, _, last = name.rpartition(".")
        parameter, module = parameter_of(last), model.get_submodule(path)
        if can_hold(module, last):
            is_transposed = f"{path}.{parameter}" in transposed
            columns = coded_shape(module, parameter, is_transposed)[-1]
            found[path][parameter] = ParameterCodes(quant_format.bits_of(shape, columns), is_transposed)
        elif shape:  # a parameter without codes is reported by transformers, as unexpected keys
            unknown.append(name)
    if unknown:
        raise CorruptError(
            f"{type(model).__name__} has no module for {', '.join(sorted(unknown))}.",
            "Check that the checkpoint belongs to this model.",
        )
    with torch.device("meta"):
        for path, coded in found.items():
            _replace(model, path, coded, quant_format, offloaded)


def can_hold(module: nn.Module, codes: str) -> bool:
    """Return whether a module can hold codes by the last name of their tensor.

    Any matrix and any stack of matrices can be coded, but for subclasses of nn.Linear with a forward of their own.
    """
    parameter = parameter_of(codes)
    value = module._parameters.get(parameter)
    if value is None or value.ndim < 2 or codes != f"codes{tail_of(parameter, value.ndim)}":
        return False
    return not isinstance(module, nn.Linear) or is_plain_linear(module)


def _replace(
    model: nn.Module, path: str, coded: dict[str, ParameterCodes], quant_format: QuantFormat, offloaded: bool
) -> None:
    module, weight = model.get_submodule(path), coded.get("weight", ParameterCodes(0))
    if isinstance(module, nn.Linear):
        model.set_submodule(path, HLWQLinear(module, weight.bits, quant_format))
    elif isinstance(module, nn.Embedding):
        code_embedding(module, weight.bits, quant_format)
    elif runs_codes(module, coded):
        code_experts(module, coded, quant_format, offloaded)
    else:
        mixin = HLWQConv1D if is_conv1d(module) and weight.is_transposed else HLWQModule
        code_parameters(module, coded, quant_format, mixin)
