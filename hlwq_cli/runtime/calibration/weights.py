"""Read the parameters of a stage from a source, in the layout of transformers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import torch

from ...checkpoint.io import DTYPES, Source, SourceRows, TensorInfo
from ...checkpoint.plan import Origin, convert
from ...host_memory import HostMemory
from .skeleton import Skeleton

READ_BYTES = 32 * 2**20
READERS = 8
_ALIGNMENT = 512


@dataclass(frozen=True)
class _Part:
    """A parameter in host memory, in the dtype of the file."""

    name: str
    data: torch.Tensor
    reads: tuple[Future[None], ...]


class StageReader:
    """Reads the parameters of stages; those of the next one while the current one is in use.

    Args:
        source: to read from.
        skeleton: its model.
    """

    def __init__(self, source: Source, skeleton: Skeleton) -> None:
        self._source, self._skeleton = source, skeleton
        self._resolution, self._device = skeleton.resolution, skeleton.device
        self._threads = ThreadPoolExecutor(READERS, "read weights")
        self._memory: list[HostMemory | None] = [None, None]
        self._next = 0
        self._begun: dict[tuple[str, ...], list[_Part]] = {}

    def begin(self, names: Iterable[str]) -> None:
        """Begin to read parameters that `read` will be asked for next."""
        wanted = tuple(names)
        if wanted in self._begun:
            return
        self._forget()
        plain = [name for name in wanted if self._resolution.origins[name].runs is not None]
        buffer = self._buffer(sum(_aligned(self._nbytes(name)) for name in plain))
        parts, at = [], 0
        for name in plain:
            nbytes = self._nbytes(name)
            parts.append(self._begin(name, buffer[at : at + nbytes]))
            at += _aligned(nbytes)
        self._begun[wanted] = parts

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return parameters on the device. Each has memory of its own, in which the inputs of a row are neighbours.

        Raises:
            HlwqError: a file cannot be read.
        """
        wanted = tuple(names)
        self.begin(wanted)
        found: dict[str, torch.Tensor] = {}
        for part in self._begun.pop(wanted):
            for read in part.reads:
                read.result()
            found[part.name] = self._on_device(part.name, part.data)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # the buffer is filled again by the next but one
        for name in wanted:
            if name not in found:
                found |= self._converted(name, wanted)
        return {name: found[name] for name in wanted}

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)
        self._begun.clear()

    def _forget(self) -> None:
        """Wait for what was begun and never asked for, as its memory is filled again."""
        for parts in self._begun.values():
            wait(read for part in parts for read in part.reads)
        self._begun.clear()

    def _on_device(self, name: str, data: torch.Tensor) -> torch.Tensor:
        dtype = self._skeleton.dtype_of(name, data.dtype)
        if self._device.type == "cpu":
            tensor = data.to(dtype, copy=True)
        else:  # in the file's dtype, and converted there: fewer bytes to copy
            tensor = data.to(self._device, non_blocking=True).to(dtype)
        return _shaped(self._skeleton, name, tensor)

    def _converted(self, name: str, wanted: tuple[str, ...]) -> dict[str, torch.Tensor]:
        tensors, resolution = self._source.tensors, self._resolution

        def read(source: str) -> torch.Tensor:
            return self._source.read(tensors[source]).view(tensors[source].shape)

        made = convert(resolution.model, name, {n: t.shape for n, t in tensors.items()}, read)
        return {
            n: t.to(self._device, self._skeleton.dtype_of(n, t.dtype), copy=True).contiguous()
            for n, t in made.items()
            if n in wanted
        }

    def _buffer(self, nbytes: int) -> torch.Tensor:
        """Return memory that was not returned by the last call; pinned for a GPU."""
        if self._device.type != "cuda":
            return torch.empty(nbytes, dtype=torch.uint8)
        memory = self._memory[self._next]
        if memory is None or len(memory.bytes) < nbytes:
            self._memory[self._next] = None
            with torch.cuda.device(self._device):
                memory = self._memory[self._next] = HostMemory(max(nbytes, 1), pin=True)
        self._next = 1 - self._next
        return memory.bytes[:nbytes]

    def _nbytes(self, name: str) -> int:
        dtype = DTYPES[self._source.tensors[self._resolution.origins[name].sources[0]].dtype]
        return math.prod(self._resolution.shapes[name]) * dtype.itemsize

    def _begin(self, name: str, buffer: torch.Tensor) -> _Part:
        """Begin to fill a buffer with the rows of a parameter."""
        origin, tensors = self._resolution.origins[name], self._source.tensors
        dtype = DTYPES[tensors[origin.sources[0]].dtype]
        reads, at = [], 0
        for rows in _source_rows(origin, tensors, math.prod(self._resolution.shapes[name])):
            step = max(1, READ_BYTES // rows.row_bytes)
            for first in range(0, rows.count, step):
                count = min(step, rows.count - first)
                view = buffer[at : at + count * rows.row_bytes].numpy().data
                reads.append(self._threads.submit(rows.read_into, self._source, first, count, view))
                at += count * rows.row_bytes
        return _Part(name, buffer.view(dtype), tuple(reads))


def zeros_for(skeleton: Skeleton, source: Source, name: str) -> torch.Tensor:
    """Return zeros in the shape, dtype and memory layout that a parameter is read in."""
    stored = DTYPES[source.tensors[skeleton.resolution.origins[name].sources[0]].dtype]
    shape = skeleton.resolution.shapes[name]
    zeros = torch.zeros(math.prod(shape), dtype=skeleton.dtype_of(name, stored), device=skeleton.device)
    return _shaped(skeleton, name, zeros)


def _shaped(skeleton: Skeleton, name: str, data: torch.Tensor) -> torch.Tensor:
    """Return the rows of a parameter, one after the other, as its module holds them."""
    shape = skeleton.resolution.shapes[name]
    if name in skeleton.transposed:
        return data.view(*shape[:-2], shape[-1], shape[-2]).mT
    return data.view(shape)


def _source_rows(origin: Origin, tensors: Mapping[str, TensorInfo], weights: int) -> list[SourceRows]:
    """Return the rows that fill a parameter of so many weights. Of vectors, a row may be a single number."""
    runs = origin.runs or ()
    width = weights // max(sum(run.count for run in runs), 1)

    def info(name: str) -> TensorInfo:
        tensor = tensors[name]
        shape = tensor.shape if len(tensor.shape) > 1 else (math.prod(tensor.shape) // max(width, 1), width)
        return replace(tensor, shape=shape)

    return [SourceRows(info(run.source), run.start, run.count, run.step, origin.is_transposed) for run in runs]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
