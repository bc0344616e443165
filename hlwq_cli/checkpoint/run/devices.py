"""The devices that encode, what the workers of one device share, and the number of workers."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from ...codec import Scheme, encode_rows, has_encode_kernel
from ...errors import HlwqError
from ...host_memory import HostMemory
from ...sizes import format_size
from .trace import Trace

logger = logging.getLogger("hlwq")
MAX_GPU_WORKERS = 32
"""At 5 bits a worker holds 90 MB of pinned memory and 110 MB of device memory: 3 and 3.5 GB for 32 workers."""


Turn = AbstractContextManager[object]


@dataclass(frozen=True)
class Device:
    """A device and what its workers share.

    Attributes:
        torch_device: the device in torch.
        lock: held by a worker while it creates a stream, and during its turn if workers take turns.
    """

    torch_device: torch.device
    lock: threading.Lock = field(default_factory=threading.Lock)
    _shared: list[torch.cuda.Stream] = field(default_factory=list, repr=False)

    @property
    def is_gpu(self) -> bool:
        """Whether weights must be copied to the device, and results back."""
        return self.torch_device.type == "cuda"

    def host_memory(self, nbytes: int) -> HostMemory:
        """Allocate host memory, at least one byte, pinned for a GPU if the system allows it.

        Raises:
            HlwqError: there is too little memory, or the GPU cannot be used.
        """
        try:
            with torch.cuda.device(self.torch_device) if self.is_gpu else nullcontext():
                memory = HostMemory(max(nbytes, 1), pin=self.is_gpu)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise HlwqError(
                f"{self.torch_device} cannot be used: {reason}.", "Free it, or use --device cpu."
            ) from error
        except OSError as error:
            raise HlwqError(
                f"The host has no {format_size(nbytes)} of memory for a thread's buffer.", "Lower --threads."
            ) from error
        if self.is_gpu and not memory.pinned:
            _warn_unpinned()
        return memory

    def worker_stream(self) -> tuple[torch.cuda.Stream, Turn]:
        """Return the stream on which a worker of a GPU copies and encodes, and the context to enter for each slice.

        If a compiled kernel encodes, each worker has its own stream and the context does nothing, since the kernel
        needs no memory except for its results. If plain torch encodes, the workers take turns on one stream, so that
        each slice reuses the temporary memory of the one before.
        """
        with self.lock:
            if has_encode_kernel(self.torch_device):
                return torch.cuda.Stream(self.torch_device), nullcontext()
            if not self._shared:
                self._shared.append(torch.cuda.Stream(self.torch_device))
            return self._shared[0], self.lock


@lru_cache(maxsize=None)
def _warn_unpinned() -> None:
    logger.warning("Host memory cannot be pinned: copies to the GPU are slow.")


def worker_count(devices: Sequence[Device], threads: int | None) -> int:
    """Return the number of worker threads: `threads` if given, else one per processor; at least one per device."""
    processors = os.cpu_count() or 1
    default = min(max(processors, 4), MAX_GPU_WORKERS) if any(d.is_gpu for d in devices) else processors
    return max(threads or default, len(devices))


def warm_up(devices: Sequence[Device], scheme: Scheme, trace: Trace) -> list[threading.Thread]:
    """Initialize GPUs and compile their kernels in the background, while the plan is made.

    Errors are ignored here. They occur again, with a message, when the first slice is encoded.

    Returns:
        The background threads. Join them before workers begin, and before the program ends.
    """
    threads = [
        threading.Thread(target=_warm_up, args=(device, scheme, trace), name=f"start {device.torch_device}")
        for device in devices
        if device.is_gpu
    ]
    for thread in threads:
        thread.start()
    return threads


def _warm_up(device: Device, scheme: Scheme, trace: Trace) -> None:
    try:
        with trace.span("start GPU"):
            torch.cuda.synchronize(device.torch_device)
        with trace.span("start kernels"), torch.cuda.device(device.torch_device):
            # Uninitialized: writing zeros would load a kernel of torch that nothing else needs.
            anything = torch.empty(64, 1024, dtype=torch.bfloat16, device=device.torch_device)
            encode_rows(anything, scheme)
    except Exception:  # reported by the run itself
        return


def join(threads: Iterable[threading.Thread]) -> None:
    """Wait until all threads have ended."""
    for thread in threads:
        thread.join()


def peak_bytes(devices: Sequence[Device]) -> int:
    """Return the peak of the memory that torch reserved, in bytes: the maximum over all GPUs among `devices`."""
    return max((torch.cuda.max_memory_reserved(d.torch_device) for d in devices if d.is_gpu), default=0)
