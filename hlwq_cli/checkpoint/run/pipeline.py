"""The pipeline of a run: workers encode slices into shards, and other threads hash and sync shards.

Work goes through the source file by file, so that each file of the Hub is needed once and can be released. Slices are
marked as written in the order in which they were submitted, whichever worker was faster. So costs are added in one
order, and the first error reported is the first in that order. Tensors are hashed while later slices are encoded, and
after a shard's last slice its file is synced. If GPUs encode, writing takes most of the time, and a file accepts one
writer at a time, so slices of several shards take turns.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Collection, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from ...codec import SquaredError
from ..format import Shard, ShardRecord
from ..io import GPU_SLICE_WEIGHTS, SLICE_WEIGHTS, Source
from ..plan import CodedTensor
from .calibration import CalibratedCoder, CalibratedLayer
from .open_shard import OpenShard
from .open_shards import OpenShards
from .schedule import interleave_shards
from .slices import Slice, WholeTensor, slices
from .worker_pool import RunOptions, WorkerPool

GPU_SHARDS_AT_ONCE = 12
_SWITCH_SECONDS = 0.0005
"""How long a thread may run Python code while others wait. The default of 5 ms is longer than a GPU takes per slice."""


class WrittenTensor(NamedTuple):
    """A calibrated tensor that is written, and the layer that it belongs to, for people."""

    layer: str
    planned: CodedTensor


class Pipeline(AbstractContextManager["Pipeline"]):
    """Encodes shards. Use it in a `with`, and iterate over `run`.

    Args:
        source: the source of the weights.
        out: the output folder, which must exist.
        shards: the shards to write.
        options: devices, number of workers, trace, and where files of the Hub are fetched to.
        calibrated: names of the coded tensors that `run_calibrated` writes.

    Attributes:
        work: (shard, slice) pairs in the order in which they are encoded.
    """

    def __init__(
        self,
        source: Source,
        out: Path,
        shards: Sequence[Shard],
        options: RunOptions,
        calibrated: Collection[str] = (),
    ) -> None:
        self._source, self._private, self._on_gpu = source, options.private, options.on_gpu
        weights = GPU_SLICE_WEIGHTS if self._on_gpu else SLICE_WEIGHTS
        at_once = min(GPU_SHARDS_AT_ONCE, options.workers) if self._on_gpu else 1
        self.work = interleave_shards(
            source, [(shard, piece) for shard in shards for piece in slices(shard, weights, calibrated)], at_once
        )
        self._unread = Counter(piece.info.file for _, piece in self.work)
        self._workers = WorkerPool(source, [piece for _, piece in self.work], options)
        whole = [
            (shard, WholeTensor(planned))
            for shard in shards
            for planned in shard.planned
            if planned.name in calibrated and isinstance(planned, CodedTensor)
        ]
        self._calibrated = {piece.planned.name: (shard, piece) for shard, piece in whole}
        hashers = max(1, options.workers // 2) if self._on_gpu else options.workers
        self._shards = OpenShards(out, self.work, whole, hashers, options.trace)
        self._max_in_flight = 2 * options.workers
        self._in_flight: deque[tuple[OpenShard, Slice, Future[SquaredError]]] = deque()
        self._switch_seconds = sys.getswitchinterval()

    def run(self) -> Generator[Slice | ShardRecord]:
        """Do the work. Yields each slice when it is written, and the record of each shard when it is finished."""
        self._source.prefetch(list(self._unread), self._private)
        for shard, piece in self.work:
            open_shard = self._shards.get(shard)
            self._in_flight.append((open_shard, piece, self._workers.submit(piece, open_shard.writer)))
            if len(self._in_flight) > self._max_in_flight:
                yield self._finish_slice()
            yield from self._shards.finished()
        while self._in_flight:
            yield self._finish_slice()
            yield from self._shards.finished()
        yield from self._shards.wait_for_all()

    def run_calibrated(
        self, layers: Iterable[CalibratedLayer], coder: CalibratedCoder
    ) -> Generator[WrittenTensor | ShardRecord]:
        """Encode and write calibrated tensors, after `run`. Yields each tensor when it is written."""
        self._workers.free()
        for layer in coder.traced(layers):
            where = f"layer {layer.number + 1} of {layer.layers}, {layer.name}"
            while layer.tensors:
                name = next(iter(layer.tensors))
                shard, piece = self._calibrated.pop(name)
                open_shard = self._shards.get(shard)
                cost, loss = coder.code(piece.planned, layer.tensors.pop(name), open_shard.writer)
                open_shard.losses[name] = loss
                self._shards.mark_written(open_shard, piece, cost)
                yield WrittenTensor(where, piece.planned)
                yield from self._shards.finished()
        for shard, piece in self._calibrated.values():
            open_shard = self._shards.get(shard)
            self._shards.mark_written(open_shard, piece, coder.code_plainly(piece.planned, open_shard.writer))
            yield WrittenTensor(piece.planned.name, piece.planned)
        yield from self._shards.wait_for_all()

    def __enter__(self) -> Pipeline:
        self._switch_seconds = sys.getswitchinterval()
        if self._on_gpu:
            sys.setswitchinterval(min(self._switch_seconds, _SWITCH_SECONDS))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the threads. After an error, work that has not begun is cancelled."""
        if kind is not None:
            self._source.stop()
        self._workers.shutdown()
        self._shards.shutdown()
        sys.setswitchinterval(self._switch_seconds)

    def _finish_slice(self) -> Slice:
        """Wait for the oldest slice in flight, mark it as written and return it."""
        open_shard, piece, future = self._in_flight.popleft()
        cost = future.result()
        self._unread[piece.info.file] -= 1
        if not self._unread[piece.info.file]:
            self._source.release(piece.info.file)
        self._shards.mark_written(open_shard, piece, cost)
        return piece
