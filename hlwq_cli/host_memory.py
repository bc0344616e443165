"""Host memory that a GPU copies from and to at full speed: large pages, registered (pinned) in place.

torch allocates pinned memory in powers of two, and that takes eleven times as long as registering such pages.
"""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress

import torch

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for all devices


class HostMemory:
    """Memory in its own mapping, pinned while this object exists. Keep the object with every view of its bytes.

    Args:
        nbytes: number of bytes, at least 1.
        pin: whether to pin the memory for GPUs. This initializes the current GPU.

    Attributes:
        bytes: uint8 (nbytes,), zeros.
        pinned: whether the memory is pinned; False if the system does not allow more pinned memory.

    Raises:
        OSError: there is not enough memory.
        RuntimeError: the GPU cannot be initialized.
    """

    def __init__(self, nbytes: int, pin: bool) -> None:
        self.bytes = _in_large_pages(nbytes)
        self.pinned = pin and (self._register() or self._ask_torch())

    def _register(self) -> bool:
        # Touch each page first. Otherwise the driver allocates the pages while it holds a lock on all pinning.
        self.bytes[:: mmap.PAGESIZE] = 0
        address, device = self.bytes.data_ptr(), torch.cuda.current_device()
        if int(torch.cuda.cudart().cudaHostRegister(address, len(self.bytes), _PORTABLE)):
            with suppress(RuntimeError):
                torch.zeros(1, device="cuda")  # clears the pending CUDA error
            return False
        weakref.finalize(self, _unregister, address, device).atexit = False  # at exit the system unregisters it
        return True

    def _ask_torch(self) -> bool:
        with suppress(RuntimeError):
            self.bytes = torch.zeros(len(self.bytes), dtype=torch.uint8, pin_memory=True)
            return True
        return False


def _in_large_pages(nbytes: int) -> torch.Tensor:
    """Return uint8 (nbytes,), in large pages if the system supports them."""
    mapped = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapped, dtype=torch.uint8)


def _unregister(address: int, device: int) -> None:
    """Unregister on the registering device, so that no CUDA context is created on the wrong device."""
    with torch.cuda.device(device):
        torch.cuda.cudart().cudaHostUnregister(address)
