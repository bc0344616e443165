"""The pipeline: slices through workers into shards, shards through hashing into records; a bounded number of each.

Work goes through the source file by file, so that a file of the Hub is needed once and can be let go. Slices land in
the order they were taken, whichever worker was quicker: costs add up in one order, and the first error is the first of
that order. Hashes of tensors follow what has landed, beside the coding of what follows, and with a shard's last slice
its file is synced. Shards may finish in any order. Where GPUs code, writing is what takes the time, and a file takes
one writer at a time: so slices of several shards then take turns.
"""

from __future__ import annotations

import queue
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from ...codec import SquaredError
from ..format import FileRecord, Shard, ShardRecord, ShardWriter, coded_record, kept_record
from ..io import GPU_SLICE_WEIGHTS, SLICE_WEIGHTS, Source
from ..plan import CodedTensor
from .devices import Device
from .gpu_buffers import encoded_bytes
from .open_shard import OpenShard
from .schedule import interleave_shards
from .slices import Slice, slices
from .trace import Trace
from .worker import Worker

GPU_SHARDS_AT_ONCE = 12
_SWITCH_SECONDS = 0.0005
"""How long a thread may go on in Python while others wait; by default 5 ms, longer than a GPU takes a slice."""


class Pipeline(AbstractContextManager["Pipeline"]):
    """Codes shards; iterate over `run` inside a `with`.

    Args:
        source: of the weights.
        out: the folder to write, which is there.
        shards: to write.
        devices: that code; workers are dealt out to them in turn.
        workers: how many.
        trace: where to record.
        private: where to fetch files of the Hub to, each removed when it has been read; by default its cache.
    """

    def __init__(
        self,
        source: Source,
        out: Path,
        shards: Sequence[Shard],
        devices: Sequence[Device],
        workers: int,
        trace: Trace,
        private: Path | None = None,
    ) -> None:
        self._private = private
        self.source, self.out, self.trace = source, out, trace
        self._on_gpu = any(d.is_gpu for d in devices)
        weights = GPU_SLICE_WEIGHTS if self._on_gpu else SLICE_WEIGHTS
        at_once = min(GPU_SHARDS_AT_ONCE, workers) if self._on_gpu else 1
        self.work = interleave_shards(
            source, [(shard, piece) for shard in shards for piece in slices(shard, weights)], at_once
        )
        self._pending: dict[str, Counter[str]] = defaultdict(Counter)
        for shard, piece in self.work:
            self._pending[shard.file][piece.planned.name] += 1
        self._in_file = Counter(piece.info.file for _, piece in self.work)
        largest = max((p.source_bytes for _, p in self.work), default=0)
        coded = max((encoded_bytes(p) for _, p in self.work), default=0)
        self._workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for n in range(workers):
            self._workers.put(Worker(devices[n % len(devices)], source, largest, coded, trace))
        self._coding = ThreadPoolExecutor(workers, "worker", initializer=torch.set_num_threads, initargs=(1,))
        hashers = max(1, workers // 2) if self._on_gpu else workers
        self._hashing = ThreadPoolExecutor(hashers, "hash")
        self._bound = 2 * workers
        self._in_flight: deque[tuple[OpenShard, Slice, Future[SquaredError]]] = deque()
        self._open_shards: dict[str, OpenShard] = {}
        self._closing: dict[Future[ShardRecord], OpenShard] = {}

    def run(self) -> Generator[Slice | ShardRecord]:
        """Do the work; gives every slice when it has landed, and every shard when it is whole under its name."""
        self.source.prefetch(list(self._in_file), self._private)
        for shard, piece in self.work:
            open_shard = self._open_shards.get(shard.file) or self._open(shard)
            self._in_flight.append((open_shard, piece, self._coding.submit(self._code, piece, open_shard.writer)))
            if len(self._in_flight) > self._bound:
                yield self._finish_slice()
            yield from self._finished_shards()
        while self._in_flight:
            yield self._finish_slice()
            yield from self._finished_shards()
        while self._closing:
            wait(self._closing, return_when=FIRST_COMPLETED)
            yield from self._finished_shards()

    def __enter__(self) -> Pipeline:
        self._switch_seconds = sys.getswitchinterval()
        if self._on_gpu:
            sys.setswitchinterval(min(self._switch_seconds, _SWITCH_SECONDS))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the threads; after an error, without finishing what is begun."""
        if kind is not None:
            self.source.stop()
        self._coding.shutdown(cancel_futures=True)
        self._hashing.shutdown(cancel_futures=True)
        for open_shard in self._open_shards.values():
            open_shard.writer.abandon()
        sys.setswitchinterval(self._switch_seconds)

    def _open(self, shard: Shard) -> OpenShard:
        open_shard = OpenShard(shard, ShardWriter(self.out, shard), self._pending[shard.file], self.trace)
        self._open_shards[shard.file] = open_shard
        return open_shard

    def _code(self, piece: Slice, writer: ShardWriter) -> SquaredError:
        worker = self._workers.get_nowait()  # there are as many as threads
        try:
            return worker.code(piece, writer)
        finally:
            self._workers.put(worker)

    def _finish_slice(self) -> Slice:
        open_shard, piece, future = self._in_flight.popleft()
        open_shard.mark_written(piece, future.result(), self._hashing)
        self._in_file[piece.info.file] -= 1
        if not self._in_file[piece.info.file]:
            self.source.release(piece.info.file)
        if not open_shard.pending:
            self._closing[self._hashing.submit(self._close, open_shard)] = open_shard
        return piece

    def _close(self, open_shard: OpenShard) -> ShardRecord:
        """Finish a shard. The hashes it waits for were handed to the same pool before it, so they are under way."""
        hashes = {name: future.result() for name, future in open_shard.hashes.items()}
        with self.trace.span("sync", open_shard.writer.size):
            open_shard.writer.finish()
        coded, kept = [], []
        for planned in open_shard.shard.planned:
            if isinstance(planned, CodedTensor):
                coded.append(coded_record(planned, hashes[planned.name], open_shard.costs[planned.name].relative))
            else:
                kept.append(kept_record(planned, hashes[planned.name]))
        file = FileRecord(open_shard.shard.file, open_shard.writer.size, None)
        return ShardRecord(file, tuple(coded), tuple(kept))

    def _finished_shards(self) -> Iterator[ShardRecord]:
        for future in [f for f in self._closing if f.done()]:
            record = future.result()
            del self._open_shards[self._closing.pop(future).shard.file]
            yield record
