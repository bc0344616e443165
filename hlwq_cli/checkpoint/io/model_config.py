"""The transformers configuration that a config.json holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import CorruptError, UnsupportedError

_FLOAT = "__float__"
_COUNT = re.compile(r"(n|num)_(.*_)?(layers?|blocks|stages)|.*_layers|n_layer|depths?")
"""Settings that transformers builds as many modules of, or as long lists."""
_MAX_LAYERS = 10_000
_KERNEL = re.compile(r".*(attn|experts)_implementation.*")
_MAX_NESTING = 20


def check_config(document: Mapping[str, Any], where: str) -> None:
    """Refuse a config.json that asks for more layers than a model can have, or for code from the Hub.

    transformers would build the layers one by one, whatever the weights are, and load such code as kernels.

    Args:
        document: the parsed file.
        where: the checkpoint, for messages.

    Raises:
        CorruptError: it has too many layers, or is nested too deep.
        UnsupportedError: it names code.
    """
    for key, value in _settings(document, where):
        for number in value if isinstance(value, list) else (value,):
            if type(number) is int and number > _MAX_LAYERS and _COUNT.fullmatch(key):
                raise CorruptError(
                    f"config.json of {where} has {key} {number:,}, more than {_MAX_LAYERS:,}.", "Fetch it again."
                )
        if isinstance(value, str) and "/" in value and _KERNEL.fullmatch(key):
            raise UnsupportedError(
                f"config.json of {where} names {value} as {key}, and hlwq never runs a checkpoint's own code.",
                "Remove that setting.",
            )


def _settings(value: Any, where: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of all settings, also of the parts of a config."""
    if depth > _MAX_NESTING:
        raise CorruptError(f"config.json of {where} is nested too deep.", "Fetch it again.")
    if isinstance(value, list):
        for entry in value:
            if isinstance(entry, dict | list):
                yield from _settings(entry, where, depth + 1)
    elif isinstance(value, dict | Mapping):
        for key, entry in value.items():
            yield str(key), entry
            if isinstance(entry, dict | list):
                yield from _settings(entry, where, depth + 1)


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
