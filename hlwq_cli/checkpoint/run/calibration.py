"""Calibrated tensors: what a run asks of a calibration, and how it encodes what it gets.

A calibration yields moments of the inputs of coded tensors, layer by layer. The run factors them, batch by batch of
experts, and encodes the weights with error feedback into their shards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ...codec import (
    FeedbackRows,
    Moments,
    Prior,
    SquaredError,
    blend_experts,
    coding_cost,
    encode_feedback,
    encode_rows,
    feedback_factor,
    shrink,
)
from ...errors import HlwqError
from ...sizes import format_size
from ..format import ShardWriter, bytes_of
from ..io import SLICE_WEIGHTS, Source
from ..plan import CodedTensor, Plan, stored_bytes
from .trace import Trace

BATCH_BYTES = 2**30
"""Moments of experts that are factored at once. It may change the bytes on a GPU."""
_WRITERS = 4
_MAX_WRITES = 16


@dataclass(frozen=True)
class CalibratedTensor:
    """What is known of the inputs of one coded tensor.

    Attributes:
        moments: of its inputs; of a stack, of the inputs of each expert. The run changes them.
        prior: what the moments of experts are blended with.
        weight: the tensor's weights, (..., out, in) with exactly the values in the source, on the device of the
            moments; None if the run must read them.
    """

    moments: Moments
    prior: Prior = "shared"
    weight: torch.Tensor | None = None


@dataclass(frozen=True)
class CalibratedLayer:
    """Coded tensors whose moments are known at the same time.

    Attributes:
        name: of the layer, for people.
        number: how many layers have been yielded before it.
        layers: how many layers there are.
        tensors: by the name of the coded tensor. The run removes each when it is coded, to free its moments.
    """

    name: str
    number: int
    layers: int
    tensors: dict[str, CalibratedTensor]


class Calibration(Protocol):
    """A source of moments."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything about it that decides the bytes: it becomes part of the run's fingerprint."""

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest says of it, for people: where the text is from, tokens, device kind, versions."""

    def prepare(self, plan: Plan) -> Mapping[str, str]:
        """Check that a plan can be calibrated, before anything is written.

        Returns:
            By name, why coded tensors get no moments; they are coded without.

        Raises:
            HlwqError: it cannot.
        """

    def layers(self, names: Collection[str]) -> Generator[CalibratedLayer]:
        """Yield the moments of these coded tensors of the prepared plan; close it to free its memory.

        Each layer must be used before the next one is asked for. What a tensor gets does not depend on which others are
        asked for.

        Raises:
            HlwqError: the forward pass fails, or there is too little memory.
        """

    def write_files(self, out: Path) -> tuple[str, ...]:
        """Write files that belong to the result, such as its tokens, and return their names."""


class CalibratedCoder:
    """Codes tensors one after the other on the device of their moments; use it in a `with`.

    Threads write what is coded while the next batch is coded.

    Args:
        source: of the weights.
        trace: where to record.
    """

    def __init__(self, source: Source, trace: Trace) -> None:
        self._source, self._trace = source, trace
        self._writers = ThreadPoolExecutor(_WRITERS, "write")
        self._writes: deque[Future[None]] = deque()

    def __enter__(self) -> CalibratedCoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._writers.shutdown(cancel_futures=True)

    def traced(self, layers: Iterable[CalibratedLayer]) -> Iterator[CalibratedLayer]:
        """Yield layers, and record how long each took to come. Recording waits for the GPU at both ends."""
        each = iter(layers)
        while True:
            with self._trace.span("forward and moments"):
                layer = next(each, None)
                self._synchronize()
            if layer is None:
                return
            yield layer

    def code(
        self, planned: CodedTensor, calibrated: CalibratedTensor, writer: ShardWriter
    ) -> tuple[SquaredError, SquaredError]:
        """Encode and write a tensor; its moments are used up.

        Returns:
            The squared error of its weights, and of its outputs: d'Hd and w'Hw.

        Raises:
            HlwqError: the weights or moments are not finite, or there is too little memory.
        """
        with self._trace.span("read for calibration", 0 if calibrated.weight is not None else planned.source_bytes):
            weight = self._weight(planned) if calibrated.weight is None else calibrated.weight
        moments = calibrated.moments
        with self._trace.span("blend and shrink"):
            moments = shrink(blend_experts(moments, calibrated.prior) if moments.has_experts else moments)
            self._synchronize()
        cost, loss = SquaredError(), SquaredError()
        for first, rows, part in self._batches(planned, weight, moments):
            flat = part.reshape(-1, part.shape[-1])
            first_row = first * planned.rows // planned.matrices
            cost += coding_cost(rows.error, rows.energy, flat, planned.parameter, first_row, planned.shape[:-1])
            loss += SquaredError(float(rows.loss.sum()), float(rows.loss_energy.sum()))
            self._write(planned, first_row, (rows.codes, rows.scales, rows.base), writer)
        self._wait(0)
        return cost, loss

    def code_plainly(self, planned: CodedTensor, writer: ShardWriter) -> SquaredError:
        """Encode and write a tensor without moments."""
        weight = self._weight(planned).reshape(-1, planned.shape[-1])
        cost, step = SquaredError(), max(1, SLICE_WEIGHTS // planned.shape[-1])
        for first in range(0, len(weight), step):
            part = weight[first : first + step]
            rows = encode_rows(part, planned.scheme)
            cost += coding_cost(rows.error, rows.energy, part, planned.parameter, first, planned.shape[:-1])
            self._write(planned, first, (rows.codes, rows.scales, rows.base), writer)
        self._wait(0)
        return cost

    def _batches(
        self, planned: CodedTensor, weight: torch.Tensor, moments: Moments
    ) -> Iterator[tuple[int, FeedbackRows, torch.Tensor]]:
        """Yield the first expert, its batch as encoded on the CPU, and the weights of the batch."""
        if not moments.has_experts:
            yield 0, self._encode(planned, weight, moments), weight
            return
        size = max(1, BATCH_BYTES // (4 * moments.inputs**2))
        first = 0
        while first < planned.matrices:
            part = slice(first, first + size)
            # A copy, as the factor may take its memory, and a batch may have to be coded again.
            some = Moments(moments.h[part].clone(), moments.counts[part, 0], moments.is_diagonal)
            try:
                rows = self._encode(planned, weight[part], some)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = (size + 1) // 2
                continue
            yield first, rows, weight[part]
            first += size

    def _encode(self, planned: CodedTensor, weight: torch.Tensor, moments: Moments) -> FeedbackRows:
        device = moments.h.device
        try:
            with self._trace.span("factor"):
                factor = feedback_factor(moments, planned.scheme.block_size, planned.parameter)
                self._synchronize()
            with self._trace.span("code"):
                rows = encode_feedback(weight.to(device), factor, planned.scheme)
                return FeedbackRows(*_on_host(rows))
        except torch.OutOfMemoryError as error:
            if len(weight.shape) == 3 and len(weight) > 1:
                raise
            needed = format_size(8 * 4 * moments.inputs**2)
            raise HlwqError(
                f"{device} has too little free memory to factor the moments of {planned.name}, about {needed}.",
                "Free some, use --device cpu, or keep it with --exclude.",
            ) from error

    def _weight(self, planned: CodedTensor) -> torch.Tensor:
        rows = [part.read(self._source) for part in planned.parts]
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).view(planned.shape)

    def _write(
        self, planned: CodedTensor, first_row: int, parts: tuple[torch.Tensor | None, ...], writer: ShardWriter
    ) -> None:
        """Begin to write rows; `parts` are their codes, scales and base."""
        stored = [part for part in parts if part is not None]
        for (name, dtype, shape), part in zip(planned.stored_tensors, stored, strict=True):
            row_bytes = stored_bytes((name, dtype, shape)) // planned.rows
            self._wait(_MAX_WRITES)
            data = bytes_of(part)
            self._writes.append(self._writers.submit(self._write_part, writer, name, first_row * row_bytes, data))

    def _write_part(self, writer: ShardWriter, name: str, start: int, data: memoryview) -> None:
        with self._trace.span("write", data.nbytes):
            writer.write(name, start, data)

    def _synchronize(self) -> None:
        if self._trace.recording and torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def _wait(self, most: int) -> None:
        """Wait until at most so many writes are left."""
        while len(self._writes) > most:
            self._writes.popleft().result()


def _on_host(parts: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors in host memory: pinned, which torch keeps for the next ones, as copies are quicker to such."""
    there = list(parts)
    if not there[0].is_cuda:
        return there
    here = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in there]
    for host, part in zip(here, there, strict=True):
        host.copy_(part, non_blocking=True)
    torch.cuda.synchronize(there[0].device)
    return here
