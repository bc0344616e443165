"""What a worker has beside its staged slice where a GPU codes: memory there, pinned memory for what returns, a stream.

Every call of torch may hand Python's own lock to another thread, and take milliseconds to get it back where threads
are many. So a slice takes five calls, on views made once for each shape: copy, encode, copy back, record, wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from hlwq_kernels import EncodedRows, prepare_encode

from ...codec import Scheme
from ..plan.planned import KeptTensor
from .devices import Device
from .slices import CodedSlice, Slice

_ALIGNMENT = 64

Shape = tuple[int, int]


@dataclass(frozen=True)
class _Form:
    """Views of a worker's buffers for slices of one shape, type and scheme, and the call that encodes them."""

    staged: torch.Tensor
    remote: torch.Tensor
    encode: Callable[[], None]
    coded: torch.Tensor
    returned: torch.Tensor
    result: CodedSlice


class GpuBuffers:
    """Memory of one worker on a GPU.

    Args:
        device: the GPU.
        staged: uint8, pinned, that slices are read into.
        coded_bytes: of the largest slice's `EncodedRows`, see `encoded_bytes`.
    """

    def __init__(self, device: Device, staged: torch.Tensor, coded_bytes: int) -> None:
        self.stream, self.turn = device.worker_stream()
        self.staged = staged
        with torch.cuda.device(device.torch_device):
            self.done = torch.cuda.Event(blocking=True)  # a thread that waits leaves its processor to others
        with torch.cuda.stream(self.stream):
            self.remote = torch.empty(len(staged), dtype=torch.uint8, device=device.torch_device)
            self.coded = torch.empty(coded_bytes, dtype=torch.uint8, device=device.torch_device)
        self._memory = device.host_memory(coded_bytes)  # pinned for as long as it is there
        self.returned = self._memory.bytes
        self._forms: dict[tuple[Shape, torch.dtype, Scheme], _Form] = {}

    def encode(self, shape: Shape, dtype: torch.dtype, scheme: Scheme) -> CodedSlice:
        """Encode the (rows, columns) that `staged` begins with; the result lies in memory that the next call reuses."""
        with self.turn, torch.cuda.stream(self.stream):
            form = self._forms.get((shape, dtype, scheme))
            if form is None:
                form = self._forms[shape, dtype, scheme] = self._make_form(shape, dtype, scheme)
            form.remote.copy_(form.staged, non_blocking=True)
            form.encode()
            form.returned.copy_(form.coded, non_blocking=True)
            self.done.record(self.stream)
        self.done.synchronize()
        return form.result

    def _make_form(self, shape: Shape, dtype: torch.dtype, scheme: Scheme) -> _Form:
        nbytes = math.prod(shape) * dtype.itemsize
        staged, remote = (b[:nbytes].view(dtype).view(shape) for b in (self.staged, self.remote))
        there, here = (_rows_in(buffer, shape, scheme) for buffer in (self.coded, self.returned))
        used = sum(_aligned(t.nbytes) for t in here if t is not None)
        encode = prepare_encode(remote, scheme.tables, scheme.block_size, scheme.scale, scheme.search, there)
        return _Form(staged, remote, encode, self.coded[:used], self.returned[:used], CodedSlice.of(staged, here))


def encoded_bytes(piece: Slice) -> int:
    """Room that a slice's `EncodedRows` take in a worker: all five tensors, each aligned."""
    if isinstance(piece.planned, KeptTensor):
        return 0
    shapes = _row_shapes((piece.length, piece.info.shape[-1]), piece.planned.scheme)
    return sum(_aligned(math.prod(shape) * dtype.itemsize) for shape, dtype in shapes)


def _row_shapes(shape: Shape, scheme: Scheme) -> Iterator[tuple[tuple[int, ...], torch.dtype]]:
    """Of codes, scales, base where there is one, error and energy; see `EncodedRows`."""
    rows, padded, log8 = shape[0], scheme.padded(shape[1]), scheme.scale == "log8"
    yield (rows, padded * scheme.bits // 8), torch.uint8
    yield (rows, padded // scheme.block_size), torch.uint8 if log8 else torch.float16
    if log8:
        yield (rows,), torch.bfloat16
    yield from [((rows,), torch.float64)] * 2


def _rows_in(buffer: torch.Tensor, shape: Shape, scheme: Scheme) -> EncodedRows:
    """Views of bytes, one after the other."""
    views, at = [], 0
    for part, dtype in _row_shapes(shape, scheme):
        nbytes = math.prod(part) * dtype.itemsize
        views.append(buffer[at : at + nbytes].view(dtype).view(part))
        at += _aligned(nbytes)
    codes, scales, *base, error, energy = views
    return EncodedRows(codes, scales, base[0] if base else None, error, energy)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
