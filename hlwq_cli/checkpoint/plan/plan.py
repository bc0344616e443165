"""The plan: for every tensor of a source, coded how or kept and why, decided from headers alone."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from ...codec import Scheme
from ...errors import UsageError
from ..io.safetensors_file import TensorInfo
from ..io.source import Source
from .architecture import Architecture, general_architecture, load_architecture
from .expert_stacks import find_stacks
from .planned import CodedTensor, KeptTensor, PlannedTensor
from .recipe import Recipe

_FLOATS = ("BF16", "F16", "F32")
_STEP = 8 * 2**20


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        source: of the weights.
        recipe: that decided.
        rule: how roles were found, for people.
        tensors: coded and kept tensors, in the order of the source's files.
        dropped: tensors that are not written, and why.
    """

    source: Source
    recipe: Recipe
    rule: str
    tensors: tuple[PlannedTensor, ...]
    dropped: tuple[KeptTensor, ...]

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
        """A hash of every decision, to tell two plans apart."""
        lines = [
            f"{j.name} {j.scheme} {[p.name for p in j.parts]}" if isinstance(j, CodedTensor) else j.info.name
            for j in self.tensors
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def make_plan(source: Source, recipe: Recipe) -> Plan:
    """Decide what becomes of every tensor.

    Raises:
        UsageError: a pattern of the recipe matches no tensor.
        CorruptError: an expert is missing or has another shape than its neighbours.
    """
    architecture = load_architecture(source.config) or _unknown_architecture(source)
    _check_patterns(source, recipe)
    stacked = find_stacks(source, architecture)
    dropped, alone = _tied_head(source), _only_head(source, architecture)
    gone = {k.info.name for k in dropped}
    tensors: list[PlannedTensor] = []
    done: set[str] = set()
    for name, info in source.tensors.items():
        if name in gone or name in done:
            continue
        stack = stacked.get(name)
        if stack is not None:
            done.update(p.name for p in stack[1])
            tensors.extend(_decide_stack(*stack, architecture, recipe))
        elif name == alone:
            tensors.append(KeptTensor(info, "head", "the tied embeddings are stored under its name"))
        else:
            tensors.append(_decide(info, architecture, recipe))
    return Plan(source, recipe, architecture.description, tuple(tensors), dropped)


def _unknown_architecture(source: Source) -> Architecture:
    from .model_class import other_names

    return general_architecture(other_names(source.config, source.tensors))


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
    three = len(info.shape) == 3 and rule.role == "expert"
    if not (three or (len(info.shape) == 2 and info.name.endswith(".weight"))):
        return KeptTensor(info, rule.role, f"shape {list(info.shape)} is no matrix")
    if info.dtype not in _FLOATS:
        return KeptTensor(info, rule.role, f"{info.dtype} is no weight type")
    name = info.name if three else info.name.removesuffix(".weight")
    return _code(name, rule.role, info.shape, bits, recipe, (info,)) or KeptTensor(
        info, rule.role, "would not get smaller"
    )


def _decide_stack(
    name: str, parts: tuple[TensorInfo, ...], shape: tuple[int, ...], architecture: Architecture, recipe: Recipe
) -> list[PlannedTensor]:
    """A stack is coded whole or not at all."""
    role = architecture.role(parts[0]).role
    widths = {recipe.width(p.name, role) for p in parts}
    bits, reason = next(iter(widths)) if len(widths) == 1 else (None, "its experts were given different widths")
    if bits is not None and parts[0].dtype not in _FLOATS:
        bits, reason = None, f"{parts[0].dtype} is no weight type"
    coded = None if bits is None else _code(name, role, shape, bits, recipe, parts)
    if coded is not None:
        return [coded]
    return [KeptTensor(p, role, reason if bits is None else "would not get smaller") for p in parts]


def _code(
    name: str, role: str, shape: tuple[int, ...], bits: int, recipe: Recipe, parts: tuple[TensorInfo, ...]
) -> CodedTensor | None:
    s = recipe.scheme
    coded = CodedTensor(name, role, shape, Scheme(bits, s.block_size, s.scale, s.search), parts)
    return coded if 0 < coded.nbytes < coded.source_bytes else None


def _heads(source: Source) -> list[TensorInfo]:
    return [t for n, t in source.tensors.items() if re.search(r"(^|\.)lm_head\.weight$", n)]


def _only_head(source: Source, architecture: Architecture) -> str | None:
    """A head that is stored for the embeddings tied to it, where they are not: codes are read the other way round."""
    heads = _heads(source)
    embeddings = any(architecture.role(t).role == "embedding" for t in source.tensors.values())
    return heads[0].name if source.tied and len(heads) == 1 and not embeddings else None


def _tied_head(source: Source) -> tuple[KeptTensor, ...]:
    """A head stored beside the embeddings it is tied to, when the bytes are the same."""
    heads = _heads(source)
    embeddings = [t for n, t in source.tensors.items() if re.search(r"embed_tokens\.weight$", n)]
    if not (source.tied and len(heads) == 1 and len(embeddings) == 1):
        return ()
    if (heads[0].shape, heads[0].dtype) != (embeddings[0].shape, embeddings[0].dtype):
        return ()
    if source.repo is None and not _same_bytes(source, heads[0], embeddings[0]):
        return ()
    return (KeptTensor(heads[0], "head", f"tied to {embeddings[0].name}, never written"),)


def _same_bytes(source: Source, a: TensorInfo, b: TensorInfo) -> bool:
    return all(
        source.read_bytes(a, at, min(_STEP, a.nbytes - at)) == source.read_bytes(b, at, min(_STEP, b.nbytes - at))
        for at in range(0, a.nbytes, _STEP)
    )
