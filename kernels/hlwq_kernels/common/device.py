"""What kernels need to know of dtypes and devices: numbers of dtypes, number of SMs, whether Triton runs."""

from __future__ import annotations

import importlib.metadata
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch

DTYPE_IDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The numbers that INPUT and OUTPUT have in CUDA sources: those that common/types.cuh defines."""
_OLDEST_TRITON = (3, 6)


def dtype_macros(x: torch.Tensor) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return the macros INPUT and OUTPUT of a kernel that reads and writes the dtype of `x`."""
    return ("INPUT", DTYPE_IDS[x.dtype]), ("OUTPUT", DTYPE_IDS[x.dtype])


@lru_cache(maxsize=None)
def num_sms(device: torch.device) -> int:
    """Return the number of streaming multiprocessors of a CUDA device."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache(maxsize=None)
def supports_triton(device: torch.device) -> bool:
    """Return whether Triton 3.6 or newer is installed and compiles for `device`: CUDA, of capability 8.0 or more."""
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
