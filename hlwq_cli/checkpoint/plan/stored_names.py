"""Which parameter of a model each stored tensor fills, by the names and converters of transformers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ModelNames:
    """The model's names and shapes, and how transformers renames stored names to them."""

    prefix: str
    shapes: dict[str, Shape]
    renamings: list[Any]
    converters: list[Any]
    transposed: frozenset[str]

    def rows_shape(self, name: str) -> Shape:
        """Return the shape of a parameter with the dimension that is not counted as rows reduced to 1."""
        shape = self.shapes[name]
        if len(shape) < 2:
            return shape
        return (*shape[:-2], 1, shape[-1]) if name in self.transposed else (*shape[:-1], 1)

    def renamed(self, stored: str) -> tuple[str, Any, str]:
        """Return a stored tensor's name in the model, its converter or None, and the pattern that it matched."""
        from transformers.core_model_loading import rename_source_key

        def rename(renamings: list[Any], converters: list[Any]) -> tuple[str, str | None]:
            return rename_source_key(stored, renamings, converters, self.prefix, self.shapes)

        name, pattern = rename(self.renamings, self.converters)
        if name not in self.shapes and stored in self.shapes:
            name, pattern = rename([], [])
        if pattern is None:
            return name, None, stored
        return name, next(c for c in self.converters if pattern in c.source_patterns), pattern


@dataclass
class TensorGroup:
    """The stored tensors that one converter takes together, or a single tensor without a converter.

    Attributes:
        converter: of transformers, or None.
        members: names of stored tensors, by the pattern that they matched.
    """

    converter: Any
    members: dict[str, list[str]] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        """Names of all its stored tensors."""
        return [name for names in self.members.values() for name in names]

    def targets(self, first: str) -> list[str]:
        """Return the parameters that the converter fills, of which `first` is the first."""
        first_pattern, *others = self.converter.target_patterns
        return [first, *(first.replace(first_pattern, other) for other in others)]

    def describe(self, first: str) -> str:
        """Return the first parameter and, if several tensors make it, how many there are of each kind."""
        kinds = [f"{len(sources)} like {sources[0]}" for sources in self.members.values()]
        return first if self.converter is None else f"{first} (of {', '.join(kinds)})"


def names_of(model: Any, transposed: Collection[str]) -> ModelNames:
    """Return the names of a model, of which `transposed` are parameters that modules hold as (..., in, out)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    mapping = get_model_conversion_mapping(model)
    return ModelNames(
        model.base_model_prefix,
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        [entry for entry in mapping if isinstance(entry, WeightRenaming)],
        [entry for entry in mapping if isinstance(entry, WeightConverter)],
        frozenset(transposed),
    )


def group_by_parameter(names: ModelNames, stored: Mapping[str, Shape]) -> tuple[dict[str, TensorGroup], set[str]]:
    """Group stored tensors by the first parameter that they fill, as transformers does; also return those of none."""
    from transformers.core_model_loading import dot_natural_key

    groups: dict[str, TensorGroup] = {}
    unused: set[str] = set()
    for source in sorted(stored, key=dot_natural_key):
        name, converter, pattern = names.renamed(source)
        group = groups.get(name, TensorGroup(converter))
        if name not in names.shapes or (group.members and (converter is None or group.converter is None)):
            unused.add(source)  # no parameter of that name, or one that an earlier tensor fills already
            continue
        groups[name] = group
        group.members.setdefault(pattern, []).append(source)
    return groups, unused
