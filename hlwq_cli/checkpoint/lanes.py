"""Lanes: each is one thread's buffers, through which slices go from a source file to an output file.

A lane reads into memory of its own, made once and, for a GPU, pinned; copies to the device, codes and copies back on
a stream of its own; and writes. A lane does one slice at a time; the overlap of reading, copying, coding and writing is
that of several lanes. Nothing is allocated a slice, so memory is bounded by the number of lanes.
"""

from __future__ import annotations

import torch

from hlwq_kernels import EncodedRows, encode_rows

from ..codec import Scheme, SquaredError, coding_cost
from ..errors import HlwqError
from .devices import Device
from .jobs import KeptTensor
from .safetensors_file import DTYPES
from .shards import ShardWriter
from .slices import Slice
from .source import Source
from .timeline import Timeline

_ALIGNMENT = 64


class Lane:
    """Codes one slice at a time on one device.

    Args:
        device: that codes.
        source: to read from.
        read_bytes: of the largest slice.
        coded_bytes: of the largest slice's `EncodedRows`, see `encoded_bytes`.
        timeline: where to record.
    """

    def __init__(self, device: Device, source: Source, read_bytes: int, coded_bytes: int, timeline: Timeline) -> None:
        self.device, self.source, self.timeline = device, source, timeline
        self.read_bytes, self.coded_bytes = read_bytes, coded_bytes
        self._gpu: _GpuBuffers | None = None
        self._staged: torch.Tensor | None = None

    def code(self, piece: Slice, writer: ShardWriter) -> SquaredError:
        """Read a slice, code it, write it; returns what coding cost.

        Raises:
            HlwqError: it cannot be read, coded or written.
        """
        staged = self._read(piece)
        job = piece.job
        if isinstance(job, KeptTensor):
            with self.timeline.span("write", piece.source_bytes):
                writer.write(job.info.name, piece.start, staged)
            return SquaredError()
        weight = staged.view(DTYPES[piece.info.dtype]).view(piece.length, -1)
        with self.timeline.span("code", piece.source_bytes):
            encoded = self._encode(weight, job.scheme)
        cost = coding_cost(encoded.error, encoded.energy, weight, piece.info.name, piece.start, piece.info.shape[:-1])
        written = [t for t in (encoded.codes, encoded.scales, encoded.base) if t is not None]
        with self.timeline.span("write", sum(t.nbytes for t in written)):
            for (name, _, _), data in zip(job.outputs, written, strict=True):
                writer.write(name, piece.row_in_job * (data.nbytes // piece.length), data)
        return cost

    def _read(self, piece: Slice) -> torch.Tensor:
        if self._staged is None:
            with self.timeline.span("allocate"):
                self._staged = self.device.host_buffer(self.read_bytes)
        staged = self._staged[: piece.source_bytes]
        self.source.open_file(piece.info.file)
        with self.timeline.span("read", piece.source_bytes):
            self.source.read_into(piece.info, piece.first_byte, staged.numpy().data)
        return staged

    def _encode(self, weight: torch.Tensor, scheme: Scheme) -> EncodedRows:
        if not self.device.is_gpu:
            return encode_rows(weight, scheme.tables, scheme.block_size, scheme.scale, scheme.search)
        try:
            if self._gpu is None:
                self._gpu = _GpuBuffers(self.device, self.read_bytes, self.coded_bytes)
            return self._gpu.encode(weight, scheme)
        except torch.OutOfMemoryError as error:
            raise HlwqError(
                f"{self.device.place} has too little free memory.", "Lower --threads, or use --device cpu."
            ) from error


class _GpuBuffers:
    """What a lane needs beside the staged slice where a GPU codes."""

    def __init__(self, device: Device, read_bytes: int, coded_bytes: int) -> None:
        self.stream, self.turn = device.lane_stream()
        with torch.cuda.device(device.place):
            self.done = torch.cuda.Event(blocking=True)  # a thread that waits leaves its processor to others
        with torch.cuda.stream(self.stream):
            self.remote = torch.empty(read_bytes, dtype=torch.uint8, device=device.place)
        self.returned = device.host_buffer(coded_bytes)

    def encode(self, weight: torch.Tensor, scheme: Scheme) -> EncodedRows:
        """Code pinned rows; the result lies in pinned memory that the next call overwrites."""
        remote = self.remote[: weight.nbytes].view(weight.dtype).view(weight.shape)
        with self.turn, torch.cuda.stream(self.stream):
            remote.copy_(weight, non_blocking=True)
            encoded = encode_rows(remote, scheme.tables, scheme.block_size, scheme.scale, scheme.search)
            returned = self._copy_back(encoded)
            self.done.record(self.stream)
            del encoded  # its memory serves the next slice, which the same stream codes after this one
        self.done.synchronize()
        return returned

    def _copy_back(self, encoded: EncodedRows) -> EncodedRows:
        at = 0

        def back(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal at
            host = self.returned[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            at += _aligned(tensor.nbytes)
            return host.copy_(tensor, non_blocking=True)

        base = None if encoded.base is None else back(encoded.base)
        return EncodedRows(back(encoded.codes), back(encoded.scales), base, back(encoded.error), back(encoded.energy))


def encoded_bytes(piece: Slice) -> int:
    """Room that a slice's `EncodedRows` take in a lane: all five tensors, each aligned."""
    if isinstance(piece.job, KeptTensor):
        return 0
    stored = piece.length * piece.job.scheme.row_bytes(piece.info.shape[-1])
    return stored + 16 * piece.length + 5 * _ALIGNMENT


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
