"""Which devices run the Triton kernels."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch


@lru_cache(maxsize=None)
def runs_triton(device: torch.device) -> bool:
    """Whether Triton is installed and compiles for `device`: a CUDA device of capability 8.0 or more."""
    if device.type != "cuda" or torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` the one that Triton launches on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
