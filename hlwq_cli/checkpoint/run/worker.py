"""Workers take slices from a source file to an output file, each with the buffers of one thread.

A worker reads a slice into its own memory, which is allocated once and pinned for a GPU. It copies the slice to the
device, encodes it and copies the result back on its own stream; then it writes. A worker handles one slice at a time:
reading, copying, encoding and writing overlap because there are several workers. Nothing is allocated per slice, so
the number of workers bounds the memory.
"""

from __future__ import annotations

from functools import cached_property

import torch

from ...codec import SquaredError, coding_cost, encode_rows
from ...errors import HlwqError
from ...host_memory import HostMemory
from ..format import ShardWriter, bytes_of
from ..io import DTYPES, Source
from ..plan import CodedTensor, KeptTensor
from .devices import Device
from .gpu_buffers import GpuBuffers
from .slices import CodedSlice, Slice
from .trace import Trace


class Worker:
    """Codes one slice at a time on one device.

    Args:
        device: that codes.
        source: to read from.
        read_bytes: of the largest slice.
        coded_bytes: of the largest slice's `EncodedRows`, see `encoded_bytes`.
        trace: where to record.
    """

    def __init__(self, device: Device, source: Source, read_bytes: int, coded_bytes: int, trace: Trace) -> None:
        self.device, self.source, self.trace = device, source, trace
        self.read_bytes, self.coded_bytes = read_bytes, coded_bytes

    def code(self, piece: Slice, writer: ShardWriter) -> SquaredError:
        """Read, encode and write a slice, and return the squared error.

        Raises:
            HlwqError: the slice cannot be read, encoded or written.
        """
        data, planned = self._read(piece), piece.planned
        if isinstance(planned, KeptTensor):
            with self.trace.span("write", piece.source_bytes):
                writer.write(planned.info.name, piece.start, data)
            return SquaredError()
        with self.trace.span("code", piece.source_bytes):
            coded = self._encode(piece, planned)
        cost = coding_cost(coded.error, coded.energy, coded.weight, *piece.first_index)
        with self.trace.span("write", sum(part.nbytes for part in coded.written)):
            for (name, _, _), part in zip(planned.stored_tensors, coded.written, strict=True):
                writer.write(name, piece.first_row * (part.nbytes // piece.length), part)
        return cost

    @cached_property
    def _memory(self) -> HostMemory:
        with self.trace.span("allocate"):
            return self.device.host_memory(self.read_bytes)

    @property
    def _staged(self) -> torch.Tensor:
        return self._memory.bytes

    @cached_property
    def _staged_bytes(self) -> memoryview:
        return bytes_of(self._staged)

    @cached_property
    def _gpu(self) -> GpuBuffers:
        return GpuBuffers(self.device, self._staged, self.coded_bytes)

    def _read(self, piece: Slice) -> memoryview:
        data = self._staged_bytes[: piece.source_bytes]
        self.source.open_file(piece.info.file)
        with self.trace.span("read", piece.source_bytes):
            piece.read_into(self.source, data)
        return data

    def _encode(self, piece: Slice, planned: CodedTensor) -> CodedSlice:
        shape, dtype, scheme = (piece.length, piece.columns), DTYPES[piece.info.dtype], planned.scheme
        if not self.device.is_gpu:
            weight = self._staged[: piece.source_bytes].view(dtype).view(shape)
            rows = encode_rows(weight, scheme)
            return CodedSlice.of(weight, rows)
        try:
            return self._gpu.encode(shape, dtype, scheme)
        except torch.OutOfMemoryError as error:
            raise HlwqError(
                f"{self.device.torch_device} has too little free memory.", "Lower --threads, or use --device cpu."
            ) from error
