"""The devices that code: which ones are asked for, and what the threads of one share."""

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
from ...errors import HlwqError, UsageError
from ...host_memory import HostMemory
from ...sizes import format_size
from .trace import Trace

logger = logging.getLogger("hlwq")
MAX_GPU_WORKERS = 32
"""A worker holds 90 MB of pinned memory at 5 bits and 110 MB of its device: 3 and 3.5 GB for 32 workers."""


Turn = AbstractContextManager[object]


@dataclass(frozen=True)
class Device:
    """A device and what its workers share.

    Attributes:
        torch_device: the device in torch.
        lock: taken by a worker while it makes a stream, and while it has its turn where they take turns.
    """

    torch_device: torch.device
    lock: threading.Lock = field(default_factory=threading.Lock)
    _shared: list[torch.cuda.Stream] = field(default_factory=list, repr=False)

    @property
    def is_gpu(self) -> bool:
        """Whether work on it must be copied there and back."""
        return self.torch_device.type == "cuda"

    def host_memory(self, nbytes: int) -> HostMemory:
        """Memory of the host, at least a byte, pinned for a GPU where the system allows it.

        Raises:
            HlwqError: there is too little, or the GPU cannot be used.
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
                f"The host has no {format_size(nbytes)} for a thread's buffer.", "Lower --threads."
            ) from error
        if self.is_gpu and not memory.pinned:
            _warn_unpinned()
        return memory

    def worker_stream(self) -> tuple[torch.cuda.Stream, Turn]:
        """The stream on which a worker of a GPU copies and codes, and what it enters to give it a slice.

        Workers have streams of their own and wait for nobody, since the kernel needs no memory but its results'. Where
        plain torch codes they take turns on one stream, so that the temporaries of one slice serve the next.
        """
        with self.lock:
            if has_encode_kernel(self.torch_device):
                return torch.cuda.Stream(self.torch_device), nullcontext()
            if not self._shared:
                self._shared.append(torch.cuda.Stream(self.torch_device))
            return self._shared[0], self.lock


@lru_cache(maxsize=None)
def _warn_unpinned() -> None:
    logger.warning("Host memory cannot be pinned: the GPU is given its slices slowly.")


def find_devices(wanted: str = "auto") -> tuple[Device, ...]:
    """The devices of a `--device` option.

    Args:
        wanted: `auto` (a GPU where there is one), `cpu`, `cuda`, or several, such as `cuda:0,cuda:1`.

    Raises:
        UsageError: a device is misspelt or not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return tuple(_find(name.strip()) for name in wanted.split(","))


def _find(name: str) -> Device:
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdecimal() or name == kind) or (kind == "cpu" and number):
        raise UsageError(f"--device {name!r} is no device.", "Give auto, cpu, cuda, or several: cuda:0,cuda:1.")
    if kind == "cpu":
        return Device(torch.device("cpu"))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        raise UsageError(f"--device {name} is not there; torch sees {count} GPUs.", "Use --device cpu, or auto.")
    return Device(torch.device("cuda", int(number or 0)))


def worker_count(devices: Sequence[Device], threads: int | None) -> int:
    """Threads that code at once: as asked, else one a processor; at least one a device."""
    processors = os.cpu_count() or 1
    default = min(max(processors, 4), MAX_GPU_WORKERS) if any(d.is_gpu for d in devices) else processors
    return max(threads or default, len(devices))


def warm_up(devices: Sequence[Device], scheme: Scheme, trace: Trace) -> list[threading.Thread]:
    """Start GPUs and compile their kernels in the background, while the plan is made.

    What fails here fails again, with a message, when the first slice is coded.

    Returns:
        The threads that do it, to be joined before workers begin, and before the program ends.
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
            # Whatever lies there: to write zeros, a kernel of torch's would be loaded, which nothing else needs.
            anything = torch.empty(64, 1024, dtype=torch.bfloat16, device=device.torch_device)
            encode_rows(anything, scheme)
    except Exception:  # reported by the run itself
        return


def join(threads: Iterable[threading.Thread]) -> None:
    """Wait until threads have ended."""
    for thread in threads:
        thread.join()


def peak_bytes(devices: Sequence[Device]) -> int:
    """The most memory that torch has held on any one of them."""
    return max((torch.cuda.max_memory_reserved(d.torch_device) for d in devices if d.is_gpu), default=0)
