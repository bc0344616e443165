"""All shards of a run that are being filled or finished, and the threads that hash and sync them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from ...codec import SquaredError
from ..format import FileRecord, Shard, ShardRecord, ShardWriter, coded_record, kept_record
from ..plan import CodedTensor
from .open_shard import OpenShard
from .schedule import Work
from .slices import Slice, WholeTensor
from .trace import Trace


class OpenShards:
    """The open shards of a run. Shards may finish in any order.

    Args:
        out: the output folder, which must exist.
        work: all slices of the run.
        calibrated: all tensors of the run that are written as a whole.
        hashers: number of threads that hash and sync.
        trace: records the hashing and syncing.
    """

    def __init__(
        self, out: Path, work: Work, calibrated: Sequence[tuple[Shard, WholeTensor]], hashers: int, trace: Trace
    ) -> None:
        self._out, self._trace = out, trace
        self._pending: dict[str, Counter[str]] = defaultdict(Counter)
        pieces: list[tuple[Shard, Slice | WholeTensor]] = [*work, *calibrated]
        for shard, piece in pieces:
            self._pending[shard.file][piece.planned.name] += 1
        self._hashing = ThreadPoolExecutor(hashers, "hash")
        self._open: dict[str, OpenShard] = {}
        self._closing: dict[Future[ShardRecord], OpenShard] = {}

    def get(self, shard: Shard) -> OpenShard:
        """Return an open shard; its file is created on the first call."""
        if shard.file not in self._open:
            writer = ShardWriter(self._out, shard)
            self._open[shard.file] = OpenShard(shard, writer, self._pending[shard.file], self._trace)
        return self._open[shard.file]

    def mark_written(self, open_shard: OpenShard, piece: Slice | WholeTensor, cost: SquaredError) -> None:
        """Mark a slice or tensor as written. After its last slice a shard is synced in the background."""
        open_shard.mark_written(piece, cost, self._hashing)
        if not open_shard.pending:
            self._closing[self._hashing.submit(self._close, open_shard)] = open_shard

    def finished(self) -> Iterator[ShardRecord]:
        """Yield the record of each shard that has been finished since the last call."""
        for future in [f for f in self._closing if f.done()]:
            record = future.result()
            del self._open[self._closing.pop(future).shard.file]
            yield record

    def wait_for_all(self) -> Iterator[ShardRecord]:
        """Wait for all shards whose slices are written, and yield their records."""
        while self._closing:
            wait(self._closing, return_when=FIRST_COMPLETED)
            yield from self.finished()

    def shutdown(self) -> None:
        """End the threads, and remove the files of shards that are not finished."""
        self._hashing.shutdown(cancel_futures=True)
        for open_shard in self._open.values():
            open_shard.writer.abandon()

    def _close(self, open_shard: OpenShard) -> ShardRecord:
        """Finish a shard. No deadlock: the pool has started the hashes it waits for before this."""
        hashes = {name: future.result() for name, future in open_shard.hashes.items()}
        with self._trace.span("sync", open_shard.writer.size):
            open_shard.writer.finish()
        coded, kept = [], []
        for planned in open_shard.shard.planned:
            if isinstance(planned, CodedTensor):
                cost, loss = open_shard.costs[planned.name], open_shard.losses.get(planned.name)
                relative = None if loss is None else loss.relative
                coded.append(coded_record(planned, hashes[planned.name], cost.relative, relative))
            else:
                kept.append(kept_record(planned, hashes[planned.name]))
        file = FileRecord(open_shard.shard.file, open_shard.writer.size, None)
        return ShardRecord(file, tuple(coded), tuple(kept))
