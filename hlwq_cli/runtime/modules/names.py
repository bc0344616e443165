"""Names of the tensors that hold one coded parameter."""

from __future__ import annotations

from hlwq_kernels.codes import PARTS

__all__ = ["PARAMETERS", "PARTS", "codes_name", "parameter_of", "tail_of"]

PARAMETERS = ("gate_up_proj", "down_proj")
"""The stacked parameters of an experts module that kernels multiply by codes."""


def codes_name(name: str) -> str:
    """Return the name of the `codes` tensor that a stored tensor belongs to; "" if its name is not that of a part."""
    path, _, last = name.rpartition(".")
    kind, _, parameter = last.partition("_")
    if kind not in PARTS or last == f"{kind}_":
        return ""
    return f"{path}.codes_{parameter}" if parameter else f"{path}.codes"


def parameter_of(codes: str) -> str:
    """Return the name in its module of the parameter that a `codes` tensor, by its last name, stores."""
    return codes.removeprefix("codes").removeprefix("_") or "weight"


def tail_of(parameter: str, dimensions: int) -> str:
    """Return what follows `codes` in the names of a parameter's parts: nothing for the weight of a matrix."""
    return "" if parameter == "weight" and dimensions == 2 else f"_{parameter}"
