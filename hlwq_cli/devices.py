"""Find the devices that a `--device` option names."""

from __future__ import annotations

import torch

from .errors import UsageError


def find_devices(wanted: str = "auto") -> tuple[torch.device, ...]:
    """Return the devices of a `--device` option.

    Args:
        wanted: `auto` (a GPU if there is one), `cpu`, `cuda`, or several, such as `cuda:0,cuda:1`.

    Raises:
        UsageError: a device is unknown or absent.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return tuple(_find(name.strip()) for name in wanted.split(","))


def _find(name: str) -> torch.device:
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdecimal() or name == kind) or (kind == "cpu" and number):
        raise UsageError(f"Unknown device {name!r}.", "Use --device auto, cpu, cuda, or several: cuda:0,cuda:1.")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        raise UsageError(f"There is no device {name}; torch sees {count} GPUs.", "Use --device cpu, or auto.")
    return torch.device("cuda", int(number or 0))
