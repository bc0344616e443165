"""Whether a checkpoint filled its model, wholly and exactly: every name that is missing, left over or mismatched."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import CorruptError
from ..modules.experts import PARAMETERS

_PARTS = ("codes", "scales", "base")


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors, sorted.

    Attributes:
        missing: places in the model that got nothing.
        unexpected: tensors that no place takes.
        mismatched: tensors of another shape than their place.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    @classmethod
    def of(cls, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[Any]) -> LoadReport:
        """From transformers' lists, whose mismatched entries are names or (name, found, expected)."""
        names = [str(m[0]) if isinstance(m, tuple) else str(m) for m in mismatched]
        return cls(tuple(sorted(missing)), tuple(sorted(unexpected)), tuple(sorted(names)))

    def check(self, path: str) -> None:
        """Raise CorruptError, with every name, unless there are none."""
        kinds = {"missing": self.missing, "left over": self.unexpected, "of another shape": self.mismatched}
        found = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
        if found:
            raise CorruptError(
                f"{path} does not fill its model; {'; '.join(found)}.", "Fetch or make the checkpoint again."
            )

    def damage(self, model: nn.Module) -> bool:
        """Whether running the model would be wrong, rather than just partial.

        A new head, or a part of the checkpoint that this class of model leaves out, is no damage: transformers tells of
        those itself. A mismatched tensor is, and so is a coded layer of which a part is missing or has no use.
        """
        modules = {name for name, _ in model.named_modules()}
        coded = (n for n in (*self.missing, *self.unexpected) if codes_name(n) and n.rpartition(".")[0] in modules)
        return bool(self.mismatched) or any(coded)


def codes_name(name: str) -> str:
    """The `codes` tensor that a stored tensor is, or belongs to; empty where it is no part of a coded parameter."""
    path, _, last = name.rpartition(".")
    kind, _, parameter = last.partition("_")
    if kind not in _PARTS or parameter not in ("", *PARAMETERS):
        return ""
    return f"{path}.codes_{parameter}" if parameter else f"{path}.codes"


class CodedParts:
    """Knows under which names a coded parameter lies in its file.

    Args:
        codes: names of all `codes` tensors.
        kinds: the stored tensors of one parameter.
        kept: modules that are not coded, by exact name.
    """

    def __init__(self, codes: Iterable[str], kinds: tuple[str, ...], kept: Iterable[str]) -> None:
        self.alike = {_pattern(name) for name in codes}
        self.kinds, self.kept = kinds, set(kept)

    def as_stored(self, parameters: Iterable[str]) -> set[str]:
        """The same names, but of parameters that other layers have coded, those of the tensors one would look for."""
        return {name for parameter in parameters for name in self._as_stored(parameter)}

    def _as_stored(self, parameter: str) -> list[str]:
        path, _, last = parameter.rpartition(".")
        tail = "" if last == "weight" else f"_{last}"
        if path in self.kept or _pattern(f"{path}.codes{tail}") not in self.alike:
            return [parameter]
        return [f"{path}.{kind}{tail}" for kind in self.kinds]


def _pattern(name: str) -> str:
    """A name without its numbers: alike in every layer."""
    return re.sub(r"\d+", "#", name)


def watch_loading(model: Any, check: Callable[[Any], None]) -> None:
    """Show `check` transformers' lists of what did not fit, once, when they are final and before they are told of."""
    usual = model._adjust_missing_and_unexpected_keys

    def adjust(info: Any) -> None:
        del model._adjust_missing_and_unexpected_keys
        usual(info)
        check(info)

    model._adjust_missing_and_unexpected_keys = adjust
