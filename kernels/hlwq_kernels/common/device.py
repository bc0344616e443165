"""Which devices run the Triton decoder."""

from __future__ import annotations

import importlib.metadata
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch

_OLDEST_TRITON = (3, 6)


@lru_cache(maxsize=None)
def runs_triton(device: torch.device) -> bool:
    """Whether a fitting Triton is installed and compiles for `device`: CUDA, of capability 8.0 or more."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return False
    fits = tuple(int(part) for part in version.split(".")[:2]) >= _OLDEST_TRITON
    return fits and torch.cuda.get_device_capability(device) >= (8, 0)


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` the one that Triton launches on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
