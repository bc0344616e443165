"""Kernels in CUDA C++, compiled when first used: NVRTC, which comes with torch, needs no compiler on the machine.

Compiled kernels are kept in a cache on disk, keyed by source text, options and compiler: only the first process waits.
A source may include headers of this package, `#include "common/ptx.cuh"`; they are put in its place in Python, because
NVRTC sees one text. It can include nothing else: CUDA's own headers need not be installed on the machine.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("hlwq")
_FOLDER = Path(__file__).parents[1]
_INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)
_OLDEST_CUDA_CORE = 1
_OLDEST_CAPABILITY = (7, 5)
_FREE_SHARED = 48 * 1024

Macros = tuple[tuple[str, str | int], ...]


@lru_cache(maxsize=None)
def supports_nvrtc(device: torch.device) -> bool:
    """Whether kernels can be compiled for `device`.

    It must be CUDA, of capability 7.5 or more, with cuda-core, and cuda-bindings of the CUDA that torch has.
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
    """What is not installed of what kernels need with so new a CUDA, as requirements; empty where all is there."""
    needed = {
        f"cuda-core>={_OLDEST_CUDA_CORE}": _major("cuda-core") >= _OLDEST_CUDA_CORE,
        f"cuda-bindings=={cuda}.*": _major("cuda-bindings") == cuda,
    }
    return " and ".join(requirement for requirement, there in needed.items() if not there)


def _major(package: str) -> int:
    try:
        return int(importlib.metadata.version(package).split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return -1


_importing = threading.Lock()


@lru_cache(maxsize=None)
def cuda_core() -> Any:
    """The module `cuda.core`. Of threads that import it at once, all but one find it half made."""
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


_compiled: dict[tuple[str, str, Macros, str, bool], Any] = {}
_compiling = threading.Lock()


def _kernel(source: str, name: str, macros: Macros, arch: str, fma: bool) -> Any:
    """A compiled kernel; of threads that ask for it at once, one compiles and the others wait."""
    key = (source, name, macros, arch, fma)
    if key not in _compiled:
        with _compiling:
            if key not in _compiled:
                _compiled[key] = compile_kernel(*key).get_kernel(name)
    return _compiled[key]


def shared_per_multiprocessor(device: torch.device) -> int:
    """Bytes of shared memory that the blocks on one multiprocessor can have together."""
    return int(_properties(device).max_shared_memory_per_multiprocessor)


def reads_pinned_memory(device: torch.device) -> bool:
    """Whether kernels on a device can be given host memory, pinned where it was, by its address."""
    return supports_nvrtc(device) and bool(_properties(device).can_use_host_pointer_for_registered_mem)


@lru_cache(maxsize=None)
def _properties(device: torch.device) -> Any:
    return cuda_core().Device(_number(device)).properties


@lru_cache(maxsize=None)
def _allow_shared(kernel: Any, device: torch.device) -> None:
    """Let a kernel use all dynamic shared memory there is: by default 48 KB, and a cache gets the rest."""
    cuda_core()
    from cuda.bindings import driver

    names = driver.CUfunction_attribute
    limits = {
        names.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: _properties(device).max_shared_memory_per_block_optin,
        names.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: 100,
    }
    for name, value in limits.items():
        (error,) = driver.cuKernelSetAttribute(name, value, kernel.handle, driver.CUdevice(_number(device)))
        if error != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{device} refuses a kernel {value} of {name.name}: {error.name}")


@lru_cache(maxsize=256)
def _resident(kernel: Any, device: torch.device, block: int, shared: int) -> int:
    if shared > _FREE_SHARED:
        _allow_shared(kernel, device)
    on_each = int(kernel.occupancy.max_active_blocks_per_multiprocessor(block, shared))
    return on_each * int(_properties(device).multiprocessor_count)


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


class _Bound(threading.local):
    """Devices whose context this thread has had once: torch gives it a context with its first call, not before."""

    def __init__(self) -> None:
        self.devices: set[int] = set()


_bound = _Bound()


@contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Make a device and its context those of this thread."""
    with torch.cuda.device(device):
        number = _number(device)
        if number not in _bound.devices:
            cuda_core().Device(number).set_current()
            _bound.devices.add(number)
        yield


@lru_cache(maxsize=256)
def _stream(handle: int) -> Any:
    return cuda_core().Stream.from_handle(handle)


@lru_cache(maxsize=4096)
def _config(grid: tuple[int, ...], block: int, shared: int, overlap: bool) -> Any:
    return cuda_core().LaunchConfig(
        grid=grid, block=block, shmem_size=shared, programmatic_stream_serialization=overlap
    )


@dataclass(frozen=True)
class Launch:
    """A kernel and all it takes, to be queued as often as it is called, on torch's then current stream.

    Attributes:
        device: to run on.
        kernel: compiled.
        config: its grid, block and shared memory.
        arguments: as the driver takes them.
        held: tensors that arguments point into.
    """

    device: torch.device
    kernel: Any
    config: Any
    arguments: tuple[Any, ...]
    held: tuple[torch.Tensor, ...]

    def __call__(self) -> None:
        """Queue the kernel."""
        with _current(self.device):
            stream = _stream(torch.cuda.current_stream(self.device).cuda_stream)
            cuda_core().launch(stream, self.config, self.kernel, *self.arguments)


class CudaKernel:
    """A kernel of one source, specialized by macros, launched on torch's current stream.

    Args:
        source: see `source_text`.
        name: likewise.
        fma: likewise.
    """

    def __init__(self, source: str, name: str, fma: bool = True) -> None:
        self.source, self.name, self.fma = source, name, fma

    def launch(
        self,
        device: torch.device,
        macros: Macros,
        grid: tuple[int, ...],
        block: int,
        *args: Any,
        shared: int = 0,
        overlap: bool = False,
    ) -> None:
        """Queue the kernel; see `prepare`."""
        self.prepare(device, macros, grid, block, *args, shared=shared, overlap=overlap)()

    def prepare(
        self,
        device: torch.device,
        macros: Macros,
        grid: tuple[int, ...],
        block: int,
        *args: Any,
        shared: int = 0,
        overlap: bool = False,
    ) -> Launch:
        """The kernel with its arguments, compiled and ready to be queued.

        Args:
            device: to run on.
            macros: that specialize it.
            grid: blocks, up to three dimensions.
            block: threads.
            args: tensors, which become pointers; ints, which kernels take as 64 bits; ctypes scalars; None is a null.
            shared: bytes of dynamic shared memory.
            overlap: start while the kernel before still runs, where the GPU can; this one then waits for it itself.
        """
        with _current(device):
            kernel = _kernel(self.source, self.name, macros, _arch(device), self.fma)
            if shared > _FREE_SHARED:
                _allow_shared(kernel, device)
            config = _config(grid, block, shared, overlap and torch.cuda.get_device_capability(device) >= (9, 0))
        held = tuple(a for a in args if isinstance(a, torch.Tensor))
        return Launch(device, kernel, config, tuple(_argument(a) for a in args), held)

    def resident(self, device: torch.device, macros: Macros, block: int, shared: int = 0) -> int:
        """How many blocks of `block` threads and `shared` bytes a device runs at once."""
        with _current(device):
            kernel = _kernel(self.source, self.name, macros, _arch(device), self.fma)
            return _resident(kernel, device, block, shared)


def _argument(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    return 0 if value is None else value


@lru_cache(maxsize=None)
def _arch(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
