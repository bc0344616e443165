"""What transformers makes of a checkpoint's tensors: for each parameter of the model, the stored rows that fill it.

transformers renames, merges, concatenates, splits, interleaves, permutes and transposes stored tensors when it loads a
checkpoint. Its own conversion mapping is asked, and its own operations are run, on tensors of row numbers in place of
weights. So an operation is understood whenever it moves whole rows, whatever its name is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .stored_names import ModelNames, Shape, TensorGroup, group_by_parameter, names_of

if TYPE_CHECKING:
    import torch

_SHAPE_OPERATIONS = frozenset(
    ("Chunk", "Concatenate", "Interleave", "MergeModulelist", "PermuteForRope", "Split", "SplitModulelist", "Transpose")
)
"""Operations of transformers that need nothing but shapes."""


@dataclass(frozen=True)
class RowRun:
    """Rows of one stored tensor that follow one another in a parameter.

    Attributes:
        source: name of the stored tensor.
        start: the first row, counted over all dimensions but the last; of a transposed tensor, the first column,
            counted over all dimensions but the one before the last.
        count: number of rows.
        step: distance between two rows.
    """

    source: str
    start: int
    count: int
    step: int = 1


@dataclass(frozen=True)
class Origin:
    """The stored tensors that fill a parameter.

    Attributes:
        sources: their names.
        runs: the rows to code in order; None where the parameter is not made of whole rows. Of a parameter that its
            module holds as (..., in, out) these are its columns.
        is_transposed: whether these rows are columns of the stored matrices.
        reason: why `runs` is None.
    """

    sources: tuple[str, ...]
    runs: tuple[RowRun, ...] | None
    is_transposed: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Resolution:
    """What a model class makes of a checkpoint.

    Attributes:
        model: an instance on the meta device.
        origins: by name of parameter or persistent buffer.
        unused: stored tensors that the model does not take, sorted.
        missing: names in the model that no stored tensor and no tied weight fills, sorted.
        mismatched: names in the model that get another shape from their stored tensors, with what these are, sorted.
        shapes: of the model's parameters and persistent buffers, by name.
    """

    model: Any
    origins: Mapping[str, Origin]
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    shapes: Mapping[str, Shape] = field(default_factory=dict)


def resolve(model: Any, stored: Mapping[str, Shape], transposed: Collection[str] = ()) -> Resolution:
    """Find the origin of each parameter and persistent buffer of a model.

    Args:
        model: a transformers model on the meta device.
        stored: shapes of the checkpoint's tensors, by name.
        transposed: parameters that their modules hold as (..., in, out).
    """
    names = names_of(model, transposed)
    groups, unused = group_by_parameter(names, stored)
    origins: dict[str, Origin] = {}
    for first, group in groups.items():
        for name, origin in _origins_of(model, names, first, group, stored).items():
            if name in names.shapes:
                origins[name] = origin
            else:
                unused.update(origin.sources)
    filled = {source for origin in origins.values() for source in origin.sources}
    return Resolution(
        model=model,
        origins=origins,
        unused=tuple(sorted(unused - filled)),
        missing=tuple(sorted(_not_filled(model, set(names.shapes) - set(origins)))),
        mismatched=tuple(sorted(g.describe(n) for n, g in groups.items() if not _fits(model, names, n, g, stored))),
        shapes=names.shapes,
    )


def convert(
    model: Any, parameter: str, stored: Mapping[str, Shape], read: Callable[[str], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return a parameter that is not made of whole stored rows, and those that are made together with it.

    Args:
        model: a transformers model, for its names and shapes.
        parameter: one whose origin has no runs.
        stored: shapes of the checkpoint's tensors, by name.
        read: returns a stored tensor.
    """
    groups, _ = group_by_parameter(names_of(model, ()), stored)
    for first, group in groups.items():
        if group.converter is None or parameter not in group.targets(first):
            continue
        converter = deepcopy(group.converter)
        for pattern, sources in group.members.items():
            converter.collected_tensors[pattern].extend(read(source) for source in sources)
        result = converter.convert(first, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in result.items()}
    raise KeyError(parameter)


def _origins_of(
    model: Any, names: ModelNames, first: str, group: TensorGroup, stored: Mapping[str, Shape]
) -> dict[str, Origin]:
    """Return the origins of the parameters that a group fills."""
    if group.converter is None:
        (source,) = group.sources
        transposed = first in names.transposed
        rows = math.prod(stored[source]) // max(stored[source][-2 if transposed else -1], 1) if stored[source] else 1
        return {first: Origin((source,), (RowRun(source, 0, rows),), transposed)}
    reason = ""
    for axis in (-1, -2):
        try:
            found = _converted(model, names, first, group, stored, axis)
        except Exception as error:  # an operation that does more than move rows may fail on row numbers in any way
            reason = reason or f"{type(error).__name__}: {error}"
            continue
        if found is not None:
            return found
        reason = reason or "its conversion does not move whole rows"
    return {name: Origin(tuple(group.sources), None, False, reason) for name in group.targets(first)}


def _converted(
    model: Any, names: ModelNames, first: str, group: TensorGroup, stored: Mapping[str, Shape], axis: int
) -> dict[str, Origin] | None:
    """Run a group's converter on row numbers; None where the results are not the rows of the model's parameters.

    Args:
        model: on the meta device.
        names: of the model.
        first: the first parameter that the group fills.
        group: the stored tensors.
        stored: their shapes.
        axis: the dimension of stored matrices that is reduced to 1: -1 for row numbers, -2 for column numbers.
    """
    import torch

    converter, ends = deepcopy(group.converter), []
    start = 0
    for pattern, sources in group.members.items():
        for source in sources:
            shape = list(stored[source])
            if len(shape) > 1:
                shape[axis] = 1
            size = math.prod(shape)
            converter.collected_tensors[pattern].append(torch.arange(start, start + size).view(shape))
            start += size
            ends.append(start)
    result = converter.convert(first, model=_RowsOfModel(model, names), config=model.config)
    origins = {}
    for name, value in result.items():
        numbers = value[0] if isinstance(value, list) else value
        if name not in names.shapes or tuple(numbers.shape) != names.rows_shape(name):
            return None
        runs = _runs(numbers.flatten(), group.sources, torch.tensor(ends))
        origins[name] = Origin(tuple(dict.fromkeys(run.source for run in runs)), runs, axis == -2)
    return origins


def _fits(model: Any, names: ModelNames, first: str, group: TensorGroup, stored: Mapping[str, Shape]) -> bool:
    """Whether the stored tensors of a group get the shapes of its parameters; true where that cannot be told."""
    import torch

    if group.converter is None:
        return stored[group.sources[0]] == names.shapes[first]
    converter = deepcopy(group.converter)
    for pattern, sources in group.members.items():
        converter.collected_tensors[pattern].extend(torch.empty(stored[s], device="meta") for s in sources)
    try:
        result = converter.convert(first, model=model, config=model.config)
    except Exception:  # the usual operations fail on shapes alone; others may need values, which meta tensors lack
        return not all(type(op).__name__ in _SHAPE_OPERATIONS for op in converter.operations)
    values = {name: value[0] if isinstance(value, list) else value for name, value in result.items()}
    return all(tuple(value.shape) == names.shapes.get(name, tuple(value.shape)) for name, value in values.items())


class _RowsOfModel:
    """Stands for the model in transformers' operations: its parameters have one dimension reduced to 1."""

    def __init__(self, model: Any, names: ModelNames) -> None:
        self._model, self._names = model, names

    def get_parameter(self, name: str) -> torch.Tensor:
        """Return an empty tensor of a parameter's reduced shape."""
        import torch

        return torch.empty(self._names.rows_shape(name), device="meta")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _runs(numbers: torch.Tensor, sources: Sequence[str], ends: torch.Tensor) -> tuple[RowRun, ...]:
    """Compress row numbers, counted over all sources, to runs within one source each."""
    import torch

    source_of = torch.bucketize(numbers, ends, right=True)
    steps = numbers[1:] - numbers[:-1]
    steps = torch.where(source_of[1:] == source_of[:-1], steps, 0)  # no run crosses sources
    values, counts = torch.unique_consecutive(steps, return_counts=True)
    segments = list(zip(values.tolist(), counts.cumsum(0).tolist(), strict=True))
    starts = [0, *ends.tolist()]
    runs: list[RowRun] = []
    first, segment = 0, 0
    while first < len(numbers):
        while segment < len(segments) and segments[segment][1] <= first:
            segment += 1
        step, end = segments[segment] if segment < len(segments) else (0, first)
        count = end - first + 1 if step > 0 else 1
        source = int(source_of[first])
        runs.append(RowRun(sources[source], int(numbers[first]) - starts[source], count, step if count > 1 else 1))
        first += count
    return tuple(runs)


def _not_filled(model: Any, missing: set[str]) -> set[str]:
    """Return the missing names without those that transformers does not miss: tied ones, and names to ignore."""
    missing = set(missing)
    for _ in range(2):  # a weight may be tied to one that is tied itself
        for pair in getattr(model, "all_tied_weights_keys", {}).items():
            if not missing.issuperset(pair):
                missing.difference_update(pair)
    ignored = [re.compile(p) for p in model._keys_to_ignore_on_load_missing or ()]
    return {name for name in missing if not any(p.search(name) for p in ignored)}
