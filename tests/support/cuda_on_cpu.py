"""CUDA kernels on the CPU: their very sources, compiled by g++ with cuda_on_cpu.h in the place of common/ptx.cuh."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from hlwq_kernels.common import Macros, source_text

_OPTIONS = (
    "-x", "c++", "-std=c++17", "-nostdinc++", "-O0", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-shared",
    "-fPIC",
)  # fmt: skip


@lru_cache(maxsize=None)
def library(source: str, macros: Macros, launch: str) -> ctypes.CDLL:
    """Return a source specialized by macros, with a function `launch` that runs a kernel of it."""
    text = source_text(source, {"common/ptx.cuh": Path(__file__).with_suffix(".h")})
    code = f"{text}\n{launch}"
    return ctypes.CDLL(str(compiled(code, (*_OPTIONS, *(f"-D{name}={value}" for name, value in macros)))))


def compiled(code: str, options: tuple[str, ...]) -> Path:
    """Return the shared library of C++ code; it is kept between runs, under a hash of all that decides it."""
    content = "\0".join([_compiler(), *options, code])
    path = _cache() / f"{hashlib.sha256(content.encode()).hexdigest()}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / path.name
            subprocess.run(["g++", *options, "-o", str(built), "-"], input=code, text=True, check=True)
            built.replace(path)
    return path


@lru_cache(maxsize=None)
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


@lru_cache(maxsize=None)
def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "hlwq-tests" / "cuda-on-cpu"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def addresses(arguments: Sequence[torch.Tensor | int]) -> ctypes.Array[ctypes.c_longlong]:
    """What a kernel takes, as 64 bits each."""
    values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    return (ctypes.c_longlong * len(values))(*values)
