"""A shard that is being filled: its pending slices, and the running hashes of its tensors.

The slices of a tensor are mostly written in order, so its hash need not wait for the last slice. When that is written,
only the bytes since the last hash step remain.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Executor, Future

from blake3 import blake3

from ...codec import SquaredError
from ..format import Shard, ShardWriter
from .slices import Slice, WholeTensor
from .trace import Trace

STEP_BYTES = 64 * 2**20

Range = tuple[int, int]


class RunningHash:
    """BLAKE3 over the byte ranges of a tensor in a file, computed while the file is filled.

    Only one thread may call its methods; a thread of a pool hashes.

    Args:
        writer: writer of the file.
        ranges: (first byte, length) of each range.
        trace: records the hashing.
    """

    def __init__(self, writer: ShardWriter, ranges: list[Range], trace: Trace) -> None:
        self._writer, self._trace = writer, trace
        (self._next, self._left), *self._others = ranges
        self._hashed = 0
        self._digest = blake3()
        self._step: Future[None] | None = None

    def follow(self, pool: Executor, written: int) -> None:
        """Hash what is new of the first `written` bytes of the first range, if that is at least `STEP_BYTES`.

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
        """Hash the rest, which must be written, and return the future hash in hexadecimal."""
        return pool.submit(self._finish, self._step, [(self._next, self._left), *self._others])

    def _add(self, ranges: list[Range]) -> None:
        with self._trace.span("hash tensor", sum(length for _, length in ranges)):
            for start, length in ranges:
                self._writer.hash_range(self._digest, start, length)
                self._writer.begin_writeback(start, length)

    def _finish(self, step: Future[None] | None, ranges: list[Range]) -> str:
        if step is not None:
            step.result()  # no deadlock: the pool started it before this
        self._add(ranges)
        return self._digest.hexdigest()


class OpenShard:
    """A shard that is not finished.

    Args:
        shard: the shard to fill.
        writer: writer of its file.
        pending: number of slices that are not written yet, by name of the planned tensor.
        trace: records the hashing.

    Attributes:
        costs: squared error of each planned tensor so far.
        losses: of each calibrated tensor, the squared error of its outputs.
        hashes: hashes of the planned tensors that are completely written.
        written: by planned tensor, the bytes of its first stored tensor that are written without a gap.
    """

    def __init__(self, shard: Shard, writer: ShardWriter, pending: Counter[str], trace: Trace) -> None:
        self.shard, self.writer, self.pending, self._trace = shard, writer, pending, trace
        self.costs: dict[str, SquaredError] = {}
        self.losses: dict[str, SquaredError] = {}
        self.hashes: dict[str, Future[str]] = {}
        self._running: dict[str, RunningHash] = {}
        self.written: Counter[str] = Counter()

    def mark_written(self, piece: Slice | WholeTensor, cost: SquaredError, pool: Executor) -> None:
        """Mark a slice or tensor as written, and update the hash of its tensor in a pool."""
        name = piece.planned.name
        self.costs[name] = self.costs.get(name, SquaredError()) + cost
        first, length = piece.written
        if first == self.written[name]:
            self.written[name] += length
        self.pending[name] -= 1
        if not self.pending[name]:
            del self.pending[name]
        self._hash(piece, pool)

    def _hash(self, piece: Slice | WholeTensor, pool: Executor) -> None:
        name = piece.planned.name
        if name not in self._running:
            byte_ranges = [self.writer.byte_ranges[tensor] for tensor, _, _ in piece.planned.stored_tensors]
            self._running[name] = RunningHash(self.writer, byte_ranges, self._trace)
        if name in self.pending:
            self._running[name].follow(pool, self.written[name])
        else:
            self.hashes[name] = self._running.pop(name).finish(pool)
