"""Which tensors of a checkpoint and of its model do not match: missing, unexpected, or of another shape."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from ...errors import CorruptError
from ..modules.names import codes_name
from .replace import with_prefix


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

    def is_damage(self, model: Any) -> bool:
        """Return whether running the model would give wrong results, rather than lack a part.

        The class that the checkpoint's config names must match in every name. Another class may have a new head, or
        leave out a part of the checkpoint, of which transformers warns; but no part within a layer, and no codes that
        belong into one of its modules. A mismatched shape is always damage.
        """
        if self.mismatched or type(model).__name__ in (model.config.architectures or ()):
            return bool(self.mismatched or self.missing or self.unexpected)
        modules = {name for name, _ in model.named_modules()}
        codes = [name for name in self.unexpected if codes_name(name)]
        return any(_is_in_layer(model, name) for name in self.missing) or any(
            _is_inside(model, modules, name) for name in codes
        )


def _is_in_layer(model: Any, name: str) -> bool:
    """Return whether a tensor belongs to a numbered layer of the base model, or is a part of a coded parameter."""
    prefix = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    return bool(codes_name(name)) or (name.startswith(prefix) and bool(re.search(r"\.\d+\.", name)))


def _is_inside(model: Any, modules: Collection[str], name: str) -> bool:
    """Return whether the deepest module that a name leads to is a part of the base model, not the whole of it."""
    whole = {"", model.base_model_prefix}
    for candidate in with_prefix(model, name):
        path = candidate.rpartition(".")[0]
        while path and path not in modules:
            path = path.rpartition(".")[0]
        if path not in whole:
            return True
    return False


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
        for tail in ("", f"_{last}") if last == "weight" else (f"_{last}",):
            if path not in self.kept and _pattern(f"{path}.codes{tail}") in self.alike:
                return [f"{path}.{kind}{tail}" for kind in self.kinds]
        return [parameter]


def _pattern(name: str) -> str:
    """Return a name with its numbers replaced, so that it is the same in every layer."""
    return re.sub(r"\d+", "#", name)
