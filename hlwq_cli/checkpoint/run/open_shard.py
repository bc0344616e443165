"""A shard while it is filled: what is still to land, and the hashes of its tensors, which follow what has landed.

A tensor's slices mostly land in their order, so its hash need not wait for the last: when that has landed, only what
came since the hash's last step is left.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Executor, Future

from blake3 import blake3

from ...codec import SquaredError
from ..format.shards import Shard, ShardWriter
from .slices import Slice
from .trace import Trace

STEP_BYTES = 64 * 2**20

Range = tuple[int, int]


class RunningHash:
    """BLAKE3 of a tensor's ranges of a file, one after the other, begun while the file is filled.

    To be called by one thread; another one, of a pool, hashes.

    Args:
        writer: of the file.
        ranges: (first byte, length) of each.
        trace: where to record.
    """

    def __init__(self, writer: ShardWriter, ranges: list[Range], trace: Trace) -> None:
        self._writer, self._trace = writer, trace
        (self._next, self._left), *self._others = ranges
        self._hashed = 0
        self._digest = blake3()
        self._step: Future[None] | None = None

    def follow(self, pool: Executor, written: int) -> None:
        """Hash on where `written` bytes from the first range's start are written, when that is worth a step of its own.

        Raises:
            HlwqError: an earlier step failed.
        """
        if self._step is not None:
            if not self._step.done():
                return
            self._step.result()
        length = written - self._hashed
        if length >= STEP_BYTES:
            self._step = pool.submit(self._add, [(self._next, length)])
            self._hashed, self._next, self._left = written, self._next + length, self._left - length

    def finish(self, pool: Executor) -> Future[str]:
        """Hash what is left, all of which is written; gives the hash in hexadecimal."""
        return pool.submit(self._finish, self._step, [(self._next, self._left), *self._others])

    def _add(self, ranges: list[Range]) -> None:
        with self._trace.span("hash tensor", sum(length for _, length in ranges)):
            for start, length in ranges:
                self._writer.hash_range(self._digest, start, length)
                self._writer.begin_writeback(start, length)

    def _finish(self, step: Future[None] | None, ranges: list[Range]) -> str:
        if step is not None:
            step.result()  # under way: the pool was given it before this
        self._add(ranges)
        return self._digest.hexdigest()


class OpenShard:
    """A shard that is not finished.

    Args:
        shard: to fill.
        writer: of its file.
        pending: numbers of slices that are not written yet, by name of the planned tensor.
        trace: where to record.

    Attributes:
        costs: squared error of each planned tensor, so far.
        hashes: of planned tensors that are written whole.
        written: bytes of each planned tensor's first stored tensor that are written without a gap.
    """

    def __init__(self, shard: Shard, writer: ShardWriter, pending: Counter[str], trace: Trace) -> None:
        self.shard, self.writer, self.pending, self._trace = shard, writer, pending, trace
        self.costs: dict[str, SquaredError] = {}
        self.hashes: dict[str, Future[str]] = {}
        self._running: dict[str, RunningHash] = {}
        self.written: Counter[str] = Counter()

    def mark_written(self, piece: Slice, cost: SquaredError, pool: Executor) -> None:
        """Note a slice that is written, and let hashes follow in a pool."""
        name = piece.planned.name
        self.costs[name] = self.costs.get(name, SquaredError()) + cost
        first, length = piece.written
        if first == self.written[name]:
            self.written[name] += length
        self.pending[name] -= 1
        if not self.pending[name]:
            del self.pending[name]
        self._hash(piece, pool)

    def _hash(self, piece: Slice, pool: Executor) -> None:
        name = piece.planned.name
        if name not in self._running:
            byte_ranges = [self.writer.byte_ranges[tensor] for tensor, _, _ in piece.planned.stored_tensors]
            self._running[name] = RunningHash(self.writer, byte_ranges, self._trace)
        if name in self.pending:
            self._running[name].follow(pool, self.written[name])
        else:
            self.hashes[name] = self._running.pop(name).finish(pool)
