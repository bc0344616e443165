"""The transformers configuration that a config.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FLOAT = "__float__"


def model_config(document: Mapping[str, Any]) -> Any:
    """Return the configuration object of a config.json.

    Args:
        document: the parsed file.

    Raises:
        Exception: whatever transformers raises for an unknown type or for settings that it does not accept.
    """
    from transformers import AutoConfig

    return AutoConfig.for_model(**_decode_floats(dict(document)))


def _decode_floats(value: Any) -> Any:
    """Replace transformers' spelling of floats that JSON lacks, such as `{"__float__": "Infinity"}`."""
    if isinstance(value, list):
        return [_decode_floats(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_FLOAT} and value[_FLOAT] in ("Infinity", "-Infinity", "NaN"):
        return float(value[_FLOAT])
    return {name: _decode_floats(entry) for name, entry in value.items()}
