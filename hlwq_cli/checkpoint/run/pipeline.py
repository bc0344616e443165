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
from ..format.manifest_entries import FileRecord, ShardRecord, coded_record, kept_record
from ..format.shards import Shard, ShardWriter
from ..io.source import Source
from ..plan.planned import CodedTensor
from .devices import Device
from .gpu_buffers import encoded_bytes
from .open_shard import Filling
from .schedule import in_turns
from .slices import GPU_SLICE_WEIGHTS, SLICE_WEIGHTS, Slice, slices
from .trace import Timeline
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
        timeline: where to record.
        private: where to fetch files of the Hub to, each removed when it has been read; by default its cache.
    """

    def __init__(
        self,
        source: Source,
        out: Path,
        shards: Sequence[Shard],
        devices: Sequence[Device],
        workers: int,
        timeline: Timeline,
        private: Path | None = None,
    ) -> None:
        self._private = private
        self.source, self.out, self.timeline = source, out, timeline
        self._on_gpu = any(d.is_gpu for d in devices)
        weights = GPU_SLICE_WEIGHTS if self._on_gpu else SLICE_WEIGHTS
        at_once = min(GPU_SHARDS_AT_ONCE, workers) if self._on_gpu else 1
        self.work = in_turns(source, [(shard, piece) for shard in shards for piece in slices(shard, weights)], at_once)
        self._waiting: dict[str, Counter[str]] = defaultdict(Counter)
        for shard, piece in self.work:
            self._waiting[shard.file][piece.job.name] += 1
        self._in_file = Counter(piece.info.file for _, piece in self.work)
        largest = max((p.source_bytes for _, p in self.work), default=0)
        coded = max((encoded_bytes(p) for _, p in self.work), default=0)
        self._workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for n in range(workers):
            self._workers.put(Worker(devices[n % len(devices)], source, largest, coded, timeline))
        self._coding = ThreadPoolExecutor(workers, "worker", initializer=torch.set_num_threads, initargs=(1,))
        hashers = max(1, workers // 2) if self._on_gpu else workers
        self._hashing = ThreadPoolExecutor(hashers, "hash")
        self._bound = 2 * workers
        self._flying: deque[tuple[Filling, Slice, Future[SquaredError]]] = deque()
        self._filling: dict[str, Filling] = {}
        self._closing: dict[Future[ShardRecord], Filling] = {}

    def run(self) -> Generator[Slice | ShardRecord]:
        """Do the work; gives every slice when it has landed, and every shard when it is whole under its name."""
        self.source.begin(list(self._in_file), self._private)
        for shard, piece in self.work:
            filling = self._filling.get(shard.file) or self._open(shard)
            self._flying.append((filling, piece, self._coding.submit(self._code, piece, filling.writer)))
            if len(self._flying) > self._bound:
                yield self._land()
            yield from self._finished()
        while self._flying:
            yield self._land()
            yield from self._finished()
        while self._closing:
            wait(self._closing, return_when=FIRST_COMPLETED)
            yield from self._finished()

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
        for filling in self._filling.values():
            filling.writer.abandon()
        sys.setswitchinterval(self._switch_seconds)

    def _open(self, shard: Shard) -> Filling:
        filling = Filling(shard, ShardWriter(self.out, shard), self._waiting[shard.file], self.timeline)
        self._filling[shard.file] = filling
        return filling

    def _code(self, piece: Slice, writer: ShardWriter) -> SquaredError:
        worker = self._workers.get_nowait()  # there are as many as threads
        try:
            return worker.code(piece, writer)
        finally:
            self._workers.put(worker)

    def _land(self) -> Slice:
        filling, piece, future = self._flying.popleft()
        filling.land(piece, future.result(), self._hashing)
        self._in_file[piece.info.file] -= 1
        if not self._in_file[piece.info.file]:
            self.source.let_go(piece.info.file)
        if not filling.waiting:
            self._closing[self._hashing.submit(self._close, filling)] = filling
        return piece

    def _close(self, filling: Filling) -> ShardRecord:
        """Finish a shard. The hashes it waits for were handed to the same pool before it, so they are under way."""
        hashes = {name: future.result() for name, future in filling.hashes.items()}
        with self.timeline.span("sync", filling.writer.size):
            filling.writer.finish()
        coded, kept = [], []
        for job in filling.shard.jobs:
            if isinstance(job, CodedTensor):
                coded.append(coded_record(job, hashes[job.name], filling.costs[job.name].relative))
            else:
                kept.append(kept_record(job, hashes[job.name]))
        file = FileRecord(filling.shard.file, filling.writer.size, None)
        return ShardRecord(file, tuple(coded), tuple(kept))

    def _finished(self) -> Iterator[ShardRecord]:
        for future in [f for f in self._closing if f.done()]:
            record = future.result()
            del self._filling[self._closing.pop(future).shard.file]
            yield record
