"""The plan: how each tensor of a source is coded, or why it is kept. It is made from headers alone."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass

from ...codec import Scheme
from ...errors import UnsupportedError, UsageError
from ..io import MAX_ROW_WEIGHTS, Source, SourceRows, TensorInfo
from .architecture import Architecture, general_architecture, layout_digest, load_architecture
from .by_class import FLOATS, LONG_ROWS, plan_by_class
from .codable import ROUTERS_STAY
from .model_class import build_model
from .planned import CodedTensor, KeptTensor, PlannedTensor
from .recipe import Recipe
from .same_bytes import have_same_bytes

_BY_CLASS = "general rule, limited to the linear layers of the model's class"


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        source: of the weights.
        recipe: that decided.
        rule: how roles were found, for people.
        tensors: coded and kept tensors, in the order of the source's files.
        dropped: tensors that are not written, and why.
        unused: names of tensors that no module of the model takes; they are kept.
        transposed: names of coded parameters that their modules hold as (..., in, out).
        unchecked: why the plan was made by names alone and not compared with the model's class; empty if it was.
    """

    source: Source
    recipe: Recipe
    rule: str
    tensors: tuple[PlannedTensor, ...]
    dropped: tuple[KeptTensor, ...]
    unused: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    unchecked: str = ""

    @property
    def coded(self) -> tuple[CodedTensor, ...]:
        """The tensors to code."""
        return tuple(j for j in self.tensors if isinstance(j, CodedTensor))

    @property
    def kept(self) -> tuple[KeptTensor, ...]:
        """The tensors to copy."""
        return tuple(j for j in self.tensors if isinstance(j, KeptTensor))

    @property
    def coded_bytes(self) -> int:
        """Stored bytes of coded tensors."""
        return sum(c.nbytes for c in self.coded)

    @property
    def kept_bytes(self) -> int:
        """Bytes of kept tensors."""
        return sum(k.info.nbytes for k in self.kept)

    @property
    def output_bytes(self) -> int:
        """Bytes of all tensors written."""
        return self.coded_bytes + self.kept_bytes

    @property
    def source_bytes(self) -> int:
        """Bytes of all tensors of the source."""
        return sum(t.nbytes for t in self.source.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """All stored bits of coded tensors over their weights."""
        weights = sum(c.weights for c in self.coded)
        return 8 * self.coded_bytes / weights if weights else 0.0

    @property
    def unquantized_share(self) -> float:
        """Share of the source's bytes that stays uncoded."""
        return self.kept_bytes / self.source_bytes if self.source_bytes else 0.0

    def digest(self) -> str:
        """Return a hash of all decisions, which differs between two plans."""
        lines = [
            f"{j.name} {j.scheme} {_parts_digest(j)}" if isinstance(j, CodedTensor) else j.info.name
            for j in self.tensors
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _parts_digest(tensor: CodedTensor) -> list[object]:
    return [p.name if p.is_whole else (p.name, p.start, p.count, p.step, p.is_transposed) for p in tensor.parts]


def make_plan(source: Source, recipe: Recipe) -> Plan:
    """Decide what becomes of every tensor, by the class of the model where transformers has it, else by names.

    Raises:
        UsageError: a pattern of the recipe matches no tensor.
        CorruptError: the checkpoint does not fill its model.
        UnsupportedError: transformers has the model's class and cannot build it, or two tensors of the result would
            have one name.
    """
    _check_patterns(source, recipe)
    plan = _plan(source, recipe)
    _check_names(plan)
    return plan


def _check_names(plan: Plan) -> None:
    """Refuse names that collide in the result, as `q_proj.base` does with the base of `q_proj.weight`."""
    stored = [name for planned in plan.tensors for name, _, _ in planned.stored_tensors]
    for names in (stored, [planned.name for planned in plan.tensors]):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise UnsupportedError(
                f"Two tensors of the result would be called {twice[0]}.",
                "Rename one of them in the source, or keep the other one with --tensor 'REGEX=keep'.",
            )


def _plan(source: Source, recipe: Recipe) -> Plan:
    architecture = load_architecture(source.config)
    if architecture is not None and layout_digest(source.config, source.tensors) in architecture.verified:
        return _plan_by_names(source, recipe, architecture)
    built = build_model(source.config, len(source.tensors))
    if built.model is None:
        return _plan_by_names(source, recipe, architecture or general_architecture(), built.reason)
    made = plan_by_class(source, built.model, architecture or general_architecture(), recipe)
    rule = architecture.description if architecture else _BY_CLASS
    return Plan(source, recipe, rule, made.tensors, made.dropped, made.unused, made.transposed)


def _plan_by_names(source: Source, recipe: Recipe, architecture: Architecture, reason: str = "") -> Plan:
    """Plan by names and shapes: for a verified architecture, or, for `reason`, where the class is not available."""
    dropped, alone = _tied_head(source), _only_head(source, architecture)
    gone = {k.info.name for k in dropped}
    tensors: list[PlannedTensor] = []
    for name, info in source.tensors.items():
        if name == alone:
            tensors.append(KeptTensor(info, "head", "the tied embeddings are stored under its name"))
        elif name not in gone:
            tensors.append(_decide(info, architecture, recipe))
    return Plan(source, recipe, architecture.description, tuple(tensors), dropped, unchecked=reason)


def _check_patterns(source: Source, recipe: Recipe) -> None:
    options = [("--tensor", p) for p, _ in recipe.overrides]
    options += [("--include", p) for p in recipe.include] + [("--exclude", p) for p in recipe.exclude]
    for option, pattern in options:
        if not any(pattern.search(name) for name in source.tensors):
            raise UsageError(
                f"{option} {pattern.pattern!r} matches no tensor.", "`hlwq quantize --dry-run` lists them."
            )


def _decide(info: TensorInfo, architecture: Architecture, recipe: Recipe) -> PlannedTensor:
    rule = architecture.role(info)
    if rule.keep:
        return KeptTensor(info, rule.role, rule.keep)
    bits, reason = recipe.width(info.name, rule.role)
    if bits is None:
        return KeptTensor(info, rule.role, reason)
    if rule.role == "router":
        return KeptTensor(info, rule.role, ROUTERS_STAY)
    three = len(info.shape) == 3 and rule.role == "expert"
    if not (three or (len(info.shape) == 2 and info.name.endswith(".weight"))):
        return KeptTensor(info, rule.role, f"shape {list(info.shape)} is no matrix")
    if info.dtype not in FLOATS:
        return KeptTensor(info, rule.role, f"{info.dtype} is no weight type")
    if info.shape[-1] > MAX_ROW_WEIGHTS:
        return KeptTensor(info, rule.role, LONG_ROWS)
    name = info.name if three else info.name.removesuffix(".weight")
    return _code(name, rule.role, info.shape, bits, recipe, (SourceRows.whole(info),)) or KeptTensor(
        info, rule.role, "would not get smaller"
    )


def _code(
    name: str, role: str, shape: tuple[int, ...], bits: int, recipe: Recipe, parts: tuple[SourceRows, ...]
) -> CodedTensor | None:
    s = recipe.scheme
    coded = CodedTensor(name, role, shape, Scheme(bits, s.block_size, s.scale, s.search), parts)
    return coded if 0 < coded.nbytes < coded.source_bytes else None


def _heads(source: Source) -> list[TensorInfo]:
    return [t for n, t in source.tensors.items() if re.search(r"(^|\.)lm_head\.weight$", n)]


def _only_head(source: Source, architecture: Architecture) -> str | None:
    """Return the name of a tied head that is stored while the embeddings are not, else None.

    It is kept: in a coded checkpoint a tied head reads the codes of the embeddings, not the reverse.
    """
    heads = _heads(source)
    embeddings = any(architecture.role(t).role == "embedding" for t in source.tensors.values())
    return heads[0].name if source.tied and len(heads) == 1 and not embeddings else None


def _tied_head(source: Source) -> tuple[KeptTensor, ...]:
    """Return a head that is stored in addition to the embeddings that it is tied to, if both have the same bytes."""
    heads = _heads(source)
    embeddings = [t for n, t in source.tensors.items() if re.search(r"embed_tokens\.weight$", n)]
    if not (source.tied and len(heads) == 1 and len(embeddings) == 1):
        return ()
    if (heads[0].shape, heads[0].dtype) != (embeddings[0].shape, embeddings[0].dtype):
        return ()
    if not have_same_bytes(source, heads[0], embeddings[0]):
        return ()
    return (KeptTensor(heads[0], "head", f"tied to {embeddings[0].name}, never written"),)
