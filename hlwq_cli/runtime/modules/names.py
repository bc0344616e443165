"""Names of the tensors that hold one coded parameter."""

from __future__ import annotations

from hlwq_kernels.codes import PARTS

__all__ = ["PARAMETERS", "PARTS", "codes_name"]

PARAMETERS = ("gate_up_proj", "down_proj")
"""The stacked parameters of an experts module."""


def codes_name(name: str) -> str:
    """Return the name of the `codes` tensor that a stored tensor belongs to; "" if it stores no coded parameter."""
    path, _, last = name.rpartition(".")
    kind, _, parameter = last.partition("_")
    if kind not in PARTS or parameter not in ("", *PARAMETERS):
        return ""
    return f"{path}.codes_{parameter}" if parameter else f"{path}.codes"
