"""The recipe: which role gets how many bits. It is read from configs/recipes or from a file of the user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...codec import MAX_BITS, MIN_BITS, Scheme
from ...errors import NotFoundError, UsageError
from .architecture import ROLES, configs_folder

_MAX_CHARACTERS = 100_000
_MAX_LISTS = 100  # lists in brackets; 20,000 nested ones took 1.7 s to read
Bits = int | None  # None keeps a tensor as it is
_RETIRED = {
    "routers": "The recipe routers is retired, as coded routers load nowhere: default is used, routers stay exact."
}
"""Names of earlier recipes that the default replaces, and the warning for each."""


@dataclass(frozen=True)
class Recipe:
    """Which tensors are coded, and how.

    Attributes:
        name: of the recipe.
        scheme: block size, scale kind and search; its bits are the default width.
        bits: width by role; roles that are absent are kept.
        overrides: (pattern, width) pairs; the last pair whose pattern is in a tensor's name decides.
        include: if there are any, only tensors with one of these patterns in their names are coded.
        exclude: tensors with one of these patterns in their names are kept.
        warnings: sentences about the name of the recipe.
    """

    name: str
    scheme: Scheme
    bits: Mapping[str, Bits]
    overrides: tuple[tuple[re.Pattern[str], Bits], ...] = ()
    include: tuple[re.Pattern[str], ...] = ()
    exclude: tuple[re.Pattern[str], ...] = ()
    warnings: tuple[str, ...] = ()

    def override(self, name: str) -> tuple[re.Pattern[str], Bits] | None:
        """Return the last override whose pattern is found in a tensor's name, if any."""
        return next((o for o in reversed(self.overrides) if o[0].search(name)), None)

    def width(self, name: str, role: str) -> tuple[Bits, str]:
        """Return the bits of a tensor, or None and the reason why it is kept."""
        if any(p.search(name) for p in self.exclude):
            return None, "excluded"
        if self.include and not any(p.search(name) for p in self.include):
            return None, "not included"
        if (override := self.override(name)) is not None:
            return override[1], "kept by --tensor"
        return self.bits.get(role), f"{role} stays exact"

    def as_json(self) -> dict[str, Any]:
        """Return everything that decides a result, for fingerprints."""
        return {
            "recipe": self.name,
            "bits": self.scheme.bits,
            "block_size": self.scheme.block_size,
            "scale": self.scheme.scale,
            "search": self.scheme.search,
            "role_bits": {role: bits for role, bits in sorted(self.bits.items()) if bits is not None},
            "tensor": [f"{p.pattern}={'keep' if b is None else b}" for p, b in self.overrides],
            "include": [p.pattern for p in self.include],
            "exclude": [p.pattern for p in self.exclude],
        }


def load_recipe(
    name: str = "default",
    bits: int = 5,
    *,
    effort: str = "default",
    tensor: tuple[str, ...] = (),
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
) -> Recipe:
    """Read a recipe and apply the user's options to it.

    Args:
        name: of a file in configs/recipes, or a path to one.
        bits: the default width, 2 to 8.
        effort: `fast` skips the scale search.
        tensor: `REGEX=BITS` or `REGEX=keep` each.
        include: regular expressions; only matching tensors are coded.
        exclude: regular expressions; matching tensors are kept.

    Raises:
        NotFoundError: no such recipe.
        UsageError: a width, an expression or the recipe itself is not valid.
    """
    if effort not in ("default", "fast"):
        raise UsageError(f"--effort is 'default' or 'fast', not {effort!r}.", "Use one of these.")
    warnings = (_RETIRED[name],) if name in _RETIRED else ()
    name = "default" if warnings else name
    document = _read(name)
    try:
        options = dict(document["scheme"])
        options["search"] = bool(options.get("search", True)) and effort == "default"
        widths = {role: _role_width(str(value), bits) for role, value in document["bits"].items()}
        scheme = Scheme(bits, **options)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"The recipe {name} is not complete: {error}.", "See configs/recipes/default.yaml.") from error
    unknown = sorted(set(widths) - set(ROLES))
    if unknown:
        raise UsageError(
            f"The recipe {name} names unknown roles: {', '.join(unknown)}.", f"Roles are {', '.join(ROLES)}."
        )
    return Recipe(
        name=Path(name).stem,
        scheme=scheme,
        bits=widths,
        overrides=tuple(_override(t) for t in tensor),
        include=tuple(_pattern(p) for p in include),
        exclude=tuple(_pattern(p) for p in exclude),
        warnings=warnings,
    )


def _read(name: str) -> dict[str, Any]:
    folder = configs_folder() / "recipes"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise NotFoundError(f"There is no recipe {name}.", f"Recipes are {known}, or give a .yaml file.")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)
        if len(text) > _MAX_CHARACTERS or text.count("[") + text.count("{") > _MAX_LISTS:
            raise ValueError("more than a recipe can hold")
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError: not UTF-8, or no such date
        raise UsageError(f"The recipe {name} is not valid YAML.", "See configs/recipes/default.yaml.") from error
    if not isinstance(document, dict):
        raise UsageError(f"The recipe {name} is not a mapping.", "See configs/recipes/default.yaml.")
    return document


def _role_width(value: str, default: int) -> Bits:
    """Return the width that `bits`, `bits+1`, a number or `keep` stands for."""
    if value == "keep":
        return None
    match = re.fullmatch(r"bits(?:\s*([+-]\s*\d))?", value)
    if match:
        return _checked(default + int((match[1] or "0").replace(" ", "")), clamp=True)
    return _checked(_integer(value))


def _override(text: str) -> tuple[re.Pattern[str], Bits]:
    pattern, separator, width = text.rpartition("=")
    if not separator:
        raise UsageError(f"--tensor {text} has no '='.", "Write --tensor 'REGEX=BITS' or 'REGEX=keep'.")
    return _pattern(pattern), None if width == "keep" else _checked(_integer(width))


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a number of bits.", "Write 2 to 8, or keep.") from error


def _checked(bits: int, clamp: bool = False) -> int:
    if clamp:
        return min(max(bits, MIN_BITS), MAX_BITS)
    if not MIN_BITS <= bits <= MAX_BITS:
        raise UsageError(f"A code has {MIN_BITS} to {MAX_BITS} bits, not {bits}.", "Use one of these widths.")
    return bits


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"{text!r} is not a regular expression: {error}.", "Correct it, or omit it.") from error
