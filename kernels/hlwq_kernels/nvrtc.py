"""Kernels in CUDA C++, compiled when first used: NVRTC, which comes with torch, needs no compiler on the machine.

What is compiled is kept in a cache on disk, named by source, options and compiler: only the first process waits.
Sources include no header, since none need lie on the machine.
"""

from __future__ import annotations

import importlib.metadata
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).parent
_OLDEST_CUDA_CORE = 1
_OLDEST_CAPABILITY = (7, 5)

Macros = tuple[tuple[str, str | int], ...]


@lru_cache(maxsize=None)
def runs_nvrtc(device: torch.device) -> bool:
    """Whether kernels can be compiled for `device`: CUDA, of capability 7.5 or more, and cuda-core is installed."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    try:
        version = importlib.metadata.version("cuda-core")
    except importlib.metadata.PackageNotFoundError:
        return False
    return int(version.split(".")[0]) >= _OLDEST_CUDA_CORE and torch.cuda.get_device_capability(device) >= (
        _OLDEST_CAPABILITY
    )


def compile_kernel(sources: tuple[str, ...], name: str, macros: Macros, arch: str, fma: bool = True) -> Any:
    """Compile a kernel; works without a GPU.

    Args:
        sources: files beside this one, joined in this order.
        name: of an `extern "C"` kernel in them.
        macros: to be defined, in order.
        arch: `sm_90` and the like.
        fma: whether multiplications and additions may be fused, which rounds once instead of twice.

    Returns:
        A `cuda.core.ObjectCode` that holds the kernel.
    """
    from cuda.core import Program, ProgramOptions
    from cuda.core.utils import FileStreamProgramCache

    code = "\n".join((_FOLDER / source).read_text() for source in sources)
    defined = [(key, str(value)) for key, value in macros]
    options = ProgramOptions(name=name, std="c++17", arch=arch, fma=fma, define_macro=defined)
    return Program(code, "c++", options).compile("cubin", cache=FileStreamProgramCache())


@lru_cache(maxsize=None)
def _kernel(sources: tuple[str, ...], name: str, macros: Macros, arch: str, fma: bool) -> Any:
    return compile_kernel(sources, name, macros, arch, fma).get_kernel(name)


@lru_cache(maxsize=256)
def _stream(handle: int) -> Any:
    from cuda.core import Stream

    return Stream.from_handle(handle)


@lru_cache(maxsize=4096)
def _config(grid: tuple[int, ...], block: int, shared: int, overlap: bool) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=grid, block=block, shmem_size=shared, programmatic_stream_serialization=overlap)


class CudaKernel:
    """A kernel of one source, specialized by macros, launched on torch's current stream.

    Args:
        sources: see `compile_kernel`.
        name: likewise.
        fma: likewise.
    """

    def __init__(self, *sources: str, name: str, fma: bool = True) -> None:
        self.sources, self.name, self.fma = sources, name, fma

    def launch(
        self, device: torch.device, macros: Macros, grid: tuple[int, ...], block: int, *args: Any,
        shared: int = 0, overlap: bool = False,
    ) -> None:  # fmt: skip
        """Queue the kernel.

        Args:
            device: to run on.
            macros: that specialize it.
            grid: blocks, up to three dimensions.
            block: threads.
            args: tensors, which become pointers; ints, which kernels take as 64 bits; ctypes scalars; None is a null.
            shared: bytes of dynamic shared memory.
            overlap: start while the kernel before still runs, where the GPU can; this one then waits for it itself.
        """
        from cuda.core import launch

        with torch.cuda.device(device):
            kernel = _kernel(self.sources, self.name, macros, _arch(device), self.fma)
            stream = _stream(torch.cuda.current_stream(device).cuda_stream)
            config = _config(grid, block, shared, overlap and torch.cuda.get_device_capability(device) >= (9, 0))
            launch(stream, config, kernel, *(_argument(a) for a in args))


def _argument(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    return 0 if value is None else value


@lru_cache(maxsize=None)
def _arch(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
