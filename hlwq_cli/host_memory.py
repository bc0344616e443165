"""Host memory that a GPU copies from and to at full speed: in large pages, pinned where it is.

torch's own pinned memory comes in powers of two, and making it takes eleven times as long as registering such pages.
"""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress

import torch

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for all devices


class HostMemory:
    """Memory of a mapping of its own, pinned for as long as this object is there: keep it with what views its bytes.

    Args:
        nbytes: how much, at least 1.
        pin: whether to pin it for GPUs. The current one is started where it was not.

    Attributes:
        bytes: uint8 (nbytes,), zeros.
        pinned: whether it is; not where the system allows no more of it.

    Raises:
        OSError: there is too little memory.
        RuntimeError: the GPU cannot be started.
    """

    def __init__(self, nbytes: int, pin: bool) -> None:
        self.bytes = _in_large_pages(nbytes)
        self.pinned = pin and (self._register() or self._ask_torch())

    def _register(self) -> bool:
        # The driver, which pins for one thread at a time, would make pages that are not there yet.
        self.bytes[:: mmap.PAGESIZE] = 0
        address, device = self.bytes.data_ptr(), torch.cuda.current_device()
        if int(torch.cuda.cudart().cudaHostRegister(address, len(self.bytes), _PORTABLE)):
            with suppress(RuntimeError):
                torch.zeros(1, device="cuda")  # meets the error that is still pending
            return False
        weakref.finalize(self, _unregister, address, device).atexit = False  # the system does it then
        return True

    def _ask_torch(self) -> bool:
        with suppress(RuntimeError):
            self.bytes = torch.zeros(len(self.bytes), dtype=torch.uint8, pin_memory=True)
            return True
        return False


def _in_large_pages(nbytes: int) -> torch.Tensor:
    """uint8 (nbytes,), in large pages where the system has them."""
    mapped = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapped, dtype=torch.uint8)


def _unregister(address: int, device: int) -> None:
    """By the device that registered it, lest the current one, which may be another, be started for it."""
    with torch.cuda.device(device):
        torch.cuda.cudart().cudaHostUnregister(address)
