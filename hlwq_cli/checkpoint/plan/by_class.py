"""The plan of a model whose class transformers has: its modules decide which tensors are coded and which are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...codec import Scheme
from ...errors import CorruptError
from ..io import MAX_ROW_WEIGHTS, Source, SourceRows, TensorInfo
from .architecture import CODED_ROLES, Architecture
from .codable import ROUTERS_STAY, ParameterKind, parameter_kinds
from .planned import CodedTensor, KeptTensor, PlannedTensor
from .recipe import Recipe
from .resolver import Origin, Resolution, resolve
from .same_bytes import have_same_bytes

FLOATS = ("BF16", "F16", "F32")
LONG_ROWS = f"its rows have more than {MAX_ROW_WEIGHTS:,} weights"
_OWN_ROLES = ("embedding", "expert", "head", "router")
_NAMED = 8


@dataclass(frozen=True)
class ClassPlan:
    """The decisions for a model class.

    Attributes:
        tensors: coded and kept tensors, in the order of the source's files.
        dropped: tensors that are not written, and why.
        unused: names of tensors that no module takes; they are kept.
        transposed: names of coded parameters that their modules hold as (..., in, out).
    """

    tensors: tuple[PlannedTensor, ...]
    dropped: tuple[KeptTensor, ...]
    unused: tuple[str, ...]
    transposed: tuple[str, ...]


def plan_by_class(source: Source, model: Any, architecture: Architecture, recipe: Recipe) -> ClassPlan:
    """Decide what becomes of every tensor, by the modules that take it.

    Args:
        source: the checkpoint.
        model: its class, on the meta device.
        architecture: the roles of its tensors by name.
        recipe: that decides widths.

    Raises:
        CorruptError: the checkpoint does not fill the model.
    """
    kinds = parameter_kinds(model)
    transposed = [name for name, kind in kinds.items() if kind.is_transposed]
    resolution = resolve(model, {n: t.shape for n, t in source.tensors.items()}, transposed)
    _check_closed(source, resolution)
    return _Decisions(source, resolution, kinds, architecture, recipe).plan()


def _check_closed(source: Source, resolution: Resolution) -> None:
    """Refuse a checkpoint that its own class could not load completely."""
    kinds = {"missing": resolution.missing, "of another shape": resolution.mismatched}
    found = [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names]
    if found:
        raise CorruptError(
            f"{source.id} does not fill {type(resolution.model).__name__}; {'; '.join(found)}.",
            "Fetch the checkpoint again, or correct its config.json.",
        )


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


class _Decisions:
    """Decides for one source; see `plan_by_class`."""

    def __init__(
        self,
        source: Source,
        resolution: Resolution,
        kinds: Mapping[str, ParameterKind],
        architecture: Architecture,
        recipe: Recipe,
    ) -> None:
        self.source, self.resolution, self.kinds = source, resolution, kinds
        self.architecture, self.recipe = architecture, recipe
        self.exact = self._tied_without_their_source()
        self.shared = {name for pair in self._ties() for name in pair if self._is_shared_stack(name)}

    def plan(self) -> ClassPlan:
        """Decide for all tensors."""
        dropped = tuple(self._stored_twice())
        gone = {tensor.name for tensor in dropped}
        groups = _groups(self.resolution.origins)
        tensors: list[PlannedTensor] = []
        done: set[str] = set(gone)
        for name, info in self.source.tensors.items():
            if name in done:
                continue
            parameters = groups.get(name)
            if parameters is None:
                tensors.append(self._unused(info))
                continue
            made = self._decide(parameters, info)
            done.update(source for p in parameters for source in self.resolution.origins[p].sources)
            tensors.extend(tensor for tensor in made if tensor.name not in gone)
        coded = {t.parameter for t in tensors if isinstance(t, CodedTensor)}
        transposed = (n for n, kind in self.kinds.items() if kind.is_transposed and n in coded)
        return ClassPlan(tuple(tensors), dropped, self.resolution.unused, tuple(sorted(transposed)))

    def _decide(self, parameters: tuple[str, ...], first: TensorInfo) -> list[PlannedTensor]:
        """Code the parameters that share stored tensors, or keep these tensors: all or none."""
        made = [self._coded(parameter) for parameter in parameters]
        coded = [tensor for tensor in made if isinstance(tensor, CodedTensor)]
        if len(coded) == len(made):
            return [*coded]
        role, reason = next(tensor for tensor in made if not isinstance(tensor, CodedTensor))
        sources = dict.fromkeys(s for p in parameters for s in self.resolution.origins[p].sources)
        return [KeptTensor(self.source.tensors[source], role, reason) for source in sources]

    def _coded(self, parameter: str) -> CodedTensor | tuple[str, str]:
        """Return a parameter coded, or its role and why it is kept."""
        origin = self.resolution.origins[parameter]
        infos = [self.source.tensors[source] for source in origin.sources]
        kind = self.kinds.get(parameter, ParameterKind("other", False, reason="a buffer"))
        role, keep = self._role(kind, infos[0])
        widths = {self.recipe.width(info.name, role) for info in infos}
        bits, reason = next(iter(widths)) if len(widths) == 1 else (None, "its parts were given different widths")
        types = {info.dtype for info in infos}
        for refused, why in (
            (keep, keep),
            (parameter in self.exact, "the tied embeddings are stored under its name"),
            (bits is None, reason),
            (not kind.is_codable, ROUTERS_STAY if role == "router" else kind.reason),
            (parameter in self.shared, "shared by modules that are not linear layers"),
            (origin.runs is None, origin.reason),
            (self._columns(parameter, kind) > MAX_ROW_WEIGHTS, LONG_ROWS),
            (len(types) > 1 or not types <= set(FLOATS), f"{', '.join(sorted(types))} is no weight type"),
        ):
            if refused:
                return role, why
        assert bits is not None
        return self._within(parameter, role, bits, origin, kind) or (role, "would not get smaller")

    def _columns(self, parameter: str, kind: ParameterKind) -> int:
        """Return the number of weights in a row, as it is coded."""
        shape = self.resolution.shapes[parameter]
        return shape[-2 if kind.is_transposed else -1] if len(shape) > 1 else 0

    def _within(self, parameter: str, role: str, bits: int, origin: Origin, kind: ParameterKind) -> CodedTensor | None:
        """Return a parameter coded, unless that takes as many bytes as its weights."""
        shape = self.resolution.shapes[parameter]
        shape = (*shape[:-2], shape[-1], shape[-2]) if kind.is_transposed else shape
        scheme = self.recipe.scheme
        name = parameter.removesuffix(".weight") if len(shape) == 2 else parameter
        parts = tuple(
            SourceRows(self.source.tensors[r.source], r.start, r.count, r.step, origin.is_transposed)
            for r in origin.runs or ()
        )
        coded = CodedTensor(name, role, shape, Scheme(bits, scheme.block_size, scheme.scale, scheme.search), parts)
        return coded if 0 < coded.nbytes < coded.source_bytes else None

    def _role(self, kind: ParameterKind, info: TensorInfo) -> tuple[str, str]:
        """Return a parameter's role, and why its architecture keeps it, if it does."""
        rule = self.architecture.role(info)
        keep = "" if rule.is_default else rule.keep
        if kind.role in _OWN_ROLES or (kind.is_codable and (rule.is_default or rule.role not in CODED_ROLES)):
            return kind.role, keep
        if not kind.is_codable and rule.role in CODED_ROLES:
            return "other", keep
        return rule.role, keep

    def _unused(self, info: TensorInfo) -> KeptTensor:
        name = type(self.resolution.model).__name__
        return KeptTensor(info, self.architecture.role(info).role, f"no module of {name} takes it")

    def _ties(self) -> Iterator[tuple[str, str]]:
        yield from getattr(self.resolution.model, "all_tied_weights_keys", {}).items()

    def _is_shared_stack(self, parameter: str) -> bool:
        """Whether a tied parameter is one that only linear layers and embeddings could share in codes."""
        kind = self.kinds.get(parameter)
        return kind is not None and (kind.role == "expert" or kind.is_transposed)

    def _tied_without_their_source(self) -> set[str]:
        """Return tied weights that are stored while the weights that they are tied to are not.

        They are kept: in a coded checkpoint a tied weight reads the codes of the other one, not the reverse.
        """
        origins = self.resolution.origins
        return {tied for tied, first in self._ties() if tied in origins and first not in origins}

    def _stored_twice(self) -> Iterator[KeptTensor]:
        """Yield tensors that are stored although they are tied to another one with the same bytes."""
        origins, tensors = self.resolution.origins, self.source.tensors
        for tied, first in self._ties():
            if tied not in origins or first not in origins:
                continue
            pair = (origins[tied].sources, origins[first].sources)
            if any(len(sources) != 1 for sources in pair) or pair[0] == pair[1]:
                continue
            copy, original = tensors[pair[0][0]], tensors[pair[1][0]]
            if (copy.shape, copy.dtype) == (original.shape, original.dtype) and have_same_bytes(
                self.source, copy, original
            ):
                yield KeptTensor(copy, "head", f"tied to {original.name}, never written")


def _groups(origins: Mapping[str, Origin]) -> dict[str, tuple[str, ...]]:
    """Return for each stored tensor the parameters that are tied together by the tensors that they share."""
    members: dict[str, set[str]] = {}
    for parameter, origin in origins.items():
        joined = {parameter}.union(*(members.get(source, set()) for source in origin.sources))
        for source in {s for p in joined for s in origins[p].sources}:
            members[source] = joined
    order = {parameter: i for i, parameter in enumerate(origins)}
    return {source: tuple(sorted(joined, key=order.__getitem__)) for source, joined in members.items()}
