"""A pool of workers: each thread takes a free worker for one slice, and the workers are spread over the devices."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ...codec import SquaredError
from ..format import ShardWriter
from ..io import Source
from .devices import Device
from .gpu_buffers import encoded_bytes
from .slices import Slice
from .trace import Trace
from .worker import Worker


@dataclass(frozen=True)
class RunOptions:
    """How a run does its work. The bytes that it writes do not depend on it.

    Attributes:
        devices: the devices that encode; workers are assigned to them in turn.
        workers: number of worker threads.
        trace: records what each thread does.
        private: a folder to fetch files of the Hub into instead of its cache; each is removed when it has been read.
    """

    devices: tuple[Device, ...]
    workers: int
    trace: Trace
    private: Path | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU encodes."""
        return any(d.is_gpu for d in self.devices)


class WorkerPool:
    """Workers and their threads.

    Args:
        source: the source to read from.
        pieces: all slices of the run; the largest one determines the size of the buffers.
        options: devices, number of workers and trace.
    """

    def __init__(self, source: Source, pieces: Sequence[Slice], options: RunOptions) -> None:
        read_bytes = max((piece.source_bytes for piece in pieces), default=0)
        coded_bytes = max((encoded_bytes(piece) for piece in pieces), default=0)
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for n in range(options.workers):
            device = options.devices[n % len(options.devices)]
            self._free.put(Worker(device, source, read_bytes, coded_bytes, options.trace))
        self._threads = ThreadPoolExecutor(options.workers, "worker", initializer=torch.set_num_threads, initargs=(1,))

    def submit(self, piece: Slice, writer: ShardWriter) -> Future[SquaredError]:
        """Read, encode and write a slice in a thread; see `Worker.code` for the result and errors."""
        return self._threads.submit(self._code, piece, writer)

    def free(self) -> None:
        """Free the buffers of workers that are not at work; it is an error to submit slices later."""
        while not self._free.empty():
            self._free.get_nowait()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # memory of the workers' streams is of no use to others

    def shutdown(self) -> None:
        """Cancel slices that have not begun, and wait until the threads have ended."""
        self._threads.shutdown(cancel_futures=True)

    def _code(self, piece: Slice, writer: ShardWriter) -> SquaredError:
        worker = self._free.get_nowait()  # there are as many workers as threads
        try:
            return worker.code(piece, writer)
        finally:
            self._free.put(worker)
