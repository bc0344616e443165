"""Which tensors of a checkpoint and of its model do not match: missing, unexpected, or of another shape."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import CorruptError
from ..modules.names import codes_name


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors that did not match, sorted.

    Attributes:
        missing: tensors of the model that the checkpoint does not have.
        unexpected: tensors of the checkpoint that the model does not have.
        mismatched: tensors whose shapes differ.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    @classmethod
    def of(cls, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[Any]) -> LoadReport:
        """Make a report from transformers' lists; mismatched entries are names or (name, found, expected)."""
        names = [str(m[0]) if isinstance(m, tuple) else str(m) for m in mismatched]
        return cls(tuple(sorted(missing)), tuple(sorted(unexpected)), tuple(sorted(names)))

    def check(self, path: str) -> None:
        """Raise CorruptError with every name, unless everything matched."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "mismatched shapes": self.mismatched}
        found = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
        if found:
            raise CorruptError(
                f"The tensors of {path} do not match its model; {'; '.join(found)}.",
                "Download or quantize the checkpoint again.",
            )

    def damage(self, model: nn.Module) -> bool:
        """Return whether running the model would give wrong results, rather than lack a part.

        A new head, or a part of the checkpoint that this class of model leaves out, is no damage: transformers warns of
        those itself. A mismatched shape is damage, and so is a coded layer with a part missing or unexpected.
        """
        modules = {name for name, _ in model.named_modules()}
        coded = (n for n in (*self.missing, *self.unexpected) if codes_name(n) and n.rpartition(".")[0] in modules)
        return bool(self.mismatched) or any(coded)


class CodedParts:
    """Maps parameters to the names of the tensors that store them.

    Args:
        codes: names of all `codes` tensors.
        kinds: the stored tensors of one parameter.
        kept: modules that are not coded, by exact name.
    """

    def __init__(self, codes: Iterable[str], kinds: tuple[str, ...], kept: Iterable[str]) -> None:
        self.alike = {_pattern(name) for name in codes}
        self.kinds, self.kept = kinds, set(kept)

    def as_stored(self, parameters: Iterable[str]) -> set[str]:
        """Replace each parameter that other layers have coded by the names of the tensors that should store it."""
        return {name for parameter in parameters for name in self._as_stored(parameter)}

    def _as_stored(self, parameter: str) -> list[str]:
        path, _, last = parameter.rpartition(".")
        tail = "" if last == "weight" else f"_{last}"
        if path in self.kept or _pattern(f"{path}.codes{tail}") not in self.alike:
            return [parameter]
        return [f"{path}.{kind}{tail}" for kind in self.kinds]


def _pattern(name: str) -> str:
    """Return a name with its numbers replaced, so that it is the same in every layer."""
    return re.sub(r"\d+", "#", name)
