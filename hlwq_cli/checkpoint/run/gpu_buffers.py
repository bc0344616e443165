"""The buffers of a worker whose device is a GPU: device memory, pinned memory for results, and a stream.

Each call of torch may release Python's global lock to another thread. With many threads it takes milliseconds to get
the lock back. So a slice takes five calls, on views made once per shape: copy, encode, copy back, record, wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...codec import EncodedRows, Scheme, ceil_div, encoded_layout, prepare_encode
from ..plan import KeptTensor
from .devices import Device
from .slices import CodedSlice, Slice

_ALIGNMENT = 64

Shape = tuple[int, int]


@dataclass(frozen=True)
class _Form:
    """Views of a worker's buffers for slices of one shape, dtype and scheme, and the function that encodes them."""

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
        staged: uint8, pinned; slices are read into it.
        coded_bytes: size of the `EncodedRows` of the largest slice, see `encoded_bytes`.
    """

    def __init__(self, device: Device, staged: torch.Tensor, coded_bytes: int) -> None:
        self.stream, self.turn = device.worker_stream()
        self.staged = staged
        with torch.cuda.device(device.torch_device):
            self.done = torch.cuda.Event(blocking=True)  # a waiting thread sleeps instead of spinning
        with torch.cuda.stream(self.stream):
            self.remote = torch.empty(len(staged), dtype=torch.uint8, device=device.torch_device)
            self.coded = torch.empty(coded_bytes, dtype=torch.uint8, device=device.torch_device)
        self._memory = device.host_memory(coded_bytes)  # pinned while this object exists
        self.returned = self._memory.bytes
        self._forms: dict[tuple[Shape, torch.dtype, Scheme], _Form] = {}

    def encode(self, shape: Shape, dtype: torch.dtype, scheme: Scheme) -> CodedSlice:
        """Encode the (rows, columns) at the start of `staged`. The next call overwrites the result."""
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
        encode = prepare_encode(remote, scheme, there)
        return _Form(staged, remote, encode, self.coded[:used], self.returned[:used], CodedSlice.of(staged, here))


def encoded_bytes(piece: Slice) -> int:
    """Return the buffer size for a slice's `EncodedRows` in bytes: all their tensors, each aligned."""
    if isinstance(piece.planned, KeptTensor):
        return 0
    parts = encoded_layout((piece.length, piece.columns), piece.planned.scheme)
    return sum(_aligned(math.prod(shape) * dtype.itemsize) for shape, dtype in parts.values())


def _rows_in(buffer: torch.Tensor, shape: Shape, scheme: Scheme) -> EncodedRows:
    """Return `EncodedRows` as views of a uint8 buffer, one after the other, each aligned."""
    views: dict[str, torch.Tensor] = {}
    at = 0
    for name, (part, dtype) in encoded_layout(shape, scheme).items():
        nbytes = math.prod(part) * dtype.itemsize
        views[name] = buffer[at : at + nbytes].view(dtype).view(part)
        at += _aligned(nbytes)
    return EncodedRows(views["codes"], views["scales"], views.get("base"), views["error"], views["energy"])


def _aligned(nbytes: int) -> int:
    return ceil_div(nbytes, _ALIGNMENT) * _ALIGNMENT
