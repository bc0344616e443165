"""Kernels in CUDA C++, compiled when first used and launched on torch's current stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from .cuda_compiler import Macros, compile_kernel, cuda_core, supports_nvrtc

_FREE_SHARED = 48 * 1024
"""Dynamic shared memory that a kernel gets without asking for more."""

_compiled: dict[tuple[str, str, Macros, str, bool], Any] = {}
_compiling = threading.Lock()


def _kernel(source: str, name: str, macros: Macros, arch: str, fma: bool) -> Any:
    """Return a compiled kernel. Of threads that ask for it at the same time, one compiles and the others wait."""
    key = (source, name, macros, arch, fma)
    if key not in _compiled:
        with _compiling:
            if key not in _compiled:
                _compiled[key] = compile_kernel(*key).get_kernel(name)
    return _compiled[key]


def shared_per_multiprocessor(device: torch.device) -> int:
    """Return the bytes of shared memory that the CTAs on one multiprocessor can have together."""
    return int(_properties(device).max_shared_memory_per_multiprocessor)


def reads_pinned_memory(device: torch.device) -> bool:
    """Return whether kernels on a device can read registered host memory at its address on the host."""
    return supports_nvrtc(device) and bool(_properties(device).can_use_host_pointer_for_registered_mem)


@lru_cache(maxsize=None)
def _properties(device: torch.device) -> Any:
    return cuda_core().Device(_number(device)).properties


@lru_cache(maxsize=None)
def _allow_shared(kernel: Any, device: torch.device) -> None:
    """Let a kernel use all dynamic shared memory. The default is 48 KB, and the L1 cache gets the rest."""
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
            raise RuntimeError(f"{device} does not accept {name.name} = {value} for a kernel: {error.name}")


@lru_cache(maxsize=256)
def _resident(kernel: Any, device: torch.device, block: int, shared: int) -> int:
    if shared > _FREE_SHARED:
        _allow_shared(kernel, device)
    on_each = int(kernel.occupancy.max_active_blocks_per_multiprocessor(block, shared))
    return on_each * int(_properties(device).multiprocessor_count)


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


class _Bound(threading.local):
    """Devices whose context has been current in this thread. torch makes it so with its first call, not before."""

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
    """A kernel with its arguments. Each call queues it on the stream that is torch's current one then.

    Attributes:
        device: to run on.
        kernel: compiled.
        config: its grid, block and shared memory.
        arguments: as the driver takes them.
        held: tensors whose memory the arguments point to.
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
        """Return the kernel with its arguments, compiled and ready to be queued.

        Args:
            device: to run on.
            macros: that specialize it.
            grid: blocks, up to three dimensions.
            block: threads.
            args: tensors, which become pointers; ints, which kernels take as 64 bits; ctypes scalars; None is a null.
            shared: bytes of dynamic shared memory.
            overlap: start while the previous kernel still runs, where the GPU supports it. The kernel must then wait
                for that one itself.
        """
        with _current(device):
            kernel = _kernel(self.source, self.name, macros, _arch(device), self.fma)
            if shared > _FREE_SHARED:
                _allow_shared(kernel, device)
            config = _config(grid, block, shared, overlap and torch.cuda.get_device_capability(device) >= (9, 0))
        held = tuple(a for a in args if isinstance(a, torch.Tensor))
        return Launch(device, kernel, config, tuple(_argument(a) for a in args), held)

    def resident(self, device: torch.device, macros: Macros, block: int, shared: int = 0) -> int:
        """Return how many CTAs of `block` threads and `shared` bytes a device runs at once."""
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
