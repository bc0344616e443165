"""Compile kernels in CUDA C++ with NVRTC, which comes with torch: the machine needs no compiler.

Compiled kernels are kept in a cache on disk, keyed by source text, options and compiler, so only the first process
waits. A source may include headers of this package, `#include "common/ptx.cuh"`. Python expands them, because NVRTC
compiles one text. A source can include nothing else: CUDA's own headers need not be installed on the machine.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("hlwq")
_FOLDER = Path(__file__).parents[1]
_INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)
_OLDEST_CUDA_CORE = 1
_OLDEST_CAPABILITY = (7, 5)

Macros = tuple[tuple[str, str | int], ...]


@lru_cache(maxsize=None)
def supports_nvrtc(device: torch.device) -> bool:
    """Return whether kernels can be compiled for `device`.

    It must be CUDA, of capability 7.5 or more. cuda-core must be installed, and cuda-bindings for torch's CUDA version.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    if torch.cuda.get_device_capability(device) < _OLDEST_CAPABILITY:
        return False
    missing = missing_packages(int(torch.version.cuda.split(".")[0]))
    if missing:
        logger.warning("%s runs plain torch, slowly: its kernels need %s. `pip install 'hlwq[gpu]'`", device, missing)
    return not missing


def missing_packages(cuda: int) -> str:
    """Return the requirements of kernels with a major version of CUDA that are not installed; empty if none."""
    needed = {
        f"cuda-core>={_OLDEST_CUDA_CORE}": _major("cuda-core") >= _OLDEST_CUDA_CORE,
        f"cuda-bindings=={cuda}.*": _major("cuda-bindings") == cuda,
    }
    return " and ".join(requirement for requirement, is_met in needed.items() if not is_met)


def _major(package: str) -> int:
    try:
        return int(importlib.metadata.version(package).split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return -1


_importing = threading.Lock()


@lru_cache(maxsize=None)
def cuda_core() -> Any:
    """Return the module `cuda.core`. Threads that import it at the same time would find it half imported."""
    with _importing:
        import cuda.core as core

        return core


def source_text(source: str, replaced: Mapping[str, Path] | None = None) -> str:
    """Return the text of a CUDA source with the headers that it includes, each of them once.

    Args:
        source: path of a `.cu` file from kernels/hlwq_kernels, or an absolute path.
        replaced: files to read instead of headers, by the headers' paths from kernels/hlwq_kernels.

    Raises:
        FileNotFoundError: an included file does not exist.
        ValueError: a file includes itself, directly or through others.
    """
    done: set[str] = set()

    def expand(file: str, stack: tuple[str, ...]) -> str:
        if file in stack:
            raise ValueError(f"circular #include in CUDA sources: {' -> '.join((*stack, file))}")
        if file in done:
            return ""
        done.add(file)
        path = (replaced or {}).get(file, _FOLDER / file)
        if stack and not path.is_file():
            raise FileNotFoundError(f'{stack[-1]}: #include "{file}": no such file')
        return _INCLUDE.sub(lambda found: expand(found[1], (*stack, file)), path.read_text())

    return expand(source, ())


def compile_kernel(source: str, name: str, macros: Macros, arch: str, fma: bool = True) -> Any:
    """Compile a kernel; works without a GPU.

    Args:
        source: see `source_text`.
        name: of an `extern "C"` kernel in it.
        macros: to be defined, in order.
        arch: `sm_90` and the like.
        fma: whether multiplications and additions may be fused, which rounds once instead of twice.

    Returns:
        A `cuda.core.ObjectCode` that holds the kernel.
    """
    core = cuda_core()
    from cuda.core.utils import FileStreamProgramCache

    defined = [(key, str(value)) for key, value in macros]
    options = core.ProgramOptions(name=name, std="c++17", arch=arch, fma=fma, define_macro=defined)
    return core.Program(source_text(source), "c++", options).compile("cubin", cache=FileStreamProgramCache())
