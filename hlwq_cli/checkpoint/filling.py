"""A shard while it is filled: what is still to land, how much of its file is whole, and hashes of tensors behind that.

Slices of a shard mostly land in the order of its file, so a hash need not wait for the end: when the last slice has
landed, only what came since the last step is left to hash.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from concurrent.futures import Executor, Future

from ..codec import SquaredError
from .shards import Shard, ShardWriter, lies_in_order, outputs
from .slices import Slice
from .timeline import Timeline

STEP_BYTES = 64 * 2**20

Range = tuple[int, int]


class RunningHash:
    """sha256 of a tensor's ranges of a file, one after the other, begun while the file is filled.

    To be called by one thread; another one, of a pool, hashes.

    Args:
        writer: of the file.
        ranges: (first byte, length) of each.
        timeline: where to record.
    """

    def __init__(self, writer: ShardWriter, ranges: list[Range], timeline: Timeline) -> None:
        self._writer, self._left, self._timeline = writer, ranges, timeline
        self._digest = hashlib.sha256()
        self._step: Future[None] | None = None

    def follow(self, pool: Executor, whole: int) -> None:
        """Hash on where `whole` bytes from the file's start are written, when that is worth a step of its own.

        Raises:
            HlwqError: an earlier step failed.
        """
        if self._step is not None:
            if not self._step.done():
                return
            self._step.result()
        ready = self._ready(whole)
        if sum(length for _, length in ready) >= STEP_BYTES:
            (start, length), rest = self._left[len(ready) - 1], self._left[len(ready) :]
            done = ready[-1][1]
            self._left = [(start + done, length - done), *rest]
            self._step = pool.submit(self._add, ready)

    def finish(self, pool: Executor) -> Future[str]:
        """Hash what is left, all of which is written; gives the hash in hexadecimal."""
        return pool.submit(self._finish, self._step, self._left)

    def _ready(self, whole: int) -> list[Range]:
        ready = []
        for start, length in self._left:
            if start >= whole:
                break
            ready.append((start, min(length, whole - start)))
            if start + length > whole:
                break
        return ready

    def _add(self, ranges: list[Range]) -> None:
        with self._timeline.span("hash tensor", sum(length for _, length in ranges)):
            for start, length in ranges:
                self._writer.hash_range(self._digest, start, length)

    def _finish(self, step: Future[None] | None, ranges: list[Range]) -> str:
        if step is not None:
            step.result()  # under way: the pool was given it before this
        self._add(ranges)
        return self._digest.hexdigest()


class Filling:
    """A shard that is not finished.

    Args:
        shard: to fill.
        writer: of its file.
        waiting: slices still to land, by job.
        timeline: where to record.

    Attributes:
        costs: of its jobs, so far.
        hashes: of jobs that are whole.
        whole: bytes from the start of the file that are written.
    """

    def __init__(self, shard: Shard, writer: ShardWriter, waiting: Counter[str], timeline: Timeline) -> None:
        self.shard, self.writer, self.waiting, self._timeline = shard, writer, waiting, timeline
        self.costs: dict[str, SquaredError] = {}
        self.hashes: dict[str, Future[str]] = {}
        self._running: dict[str, RunningHash] = {}
        self._rows: Counter[str] = Counter()
        in_order = [job for job in shard.jobs if lies_in_order(job)]
        self._ahead = deque((job.name, writer.places[outputs(job)[0][0]][0]) for job in in_order)
        self.whole = 0

    def land(self, piece: Slice, cost: SquaredError, pool: Executor) -> None:
        """Note a slice that is written, and let hashes follow in a pool."""
        name = piece.job.name
        self.costs[name] = self.costs.get(name, SquaredError()) + cost
        first, length = piece.written
        if first == self._rows[name]:
            self._rows[name] += length
        self.waiting[name] -= 1
        if not self.waiting[name]:
            del self.waiting[name]
        self._grow()
        self._hash(piece, pool)

    def _grow(self) -> None:
        while self._ahead and self._ahead[0][0] not in self.waiting:
            self._ahead.popleft()
        if self._ahead:
            name, start = self._ahead[0]
            self.whole = start + self._rows[name]
        elif not self.waiting:
            self.whole = self.writer.size

    def _hash(self, piece: Slice, pool: Executor) -> None:
        name = piece.job.name
        if name not in self._running:
            places = [self.writer.places[tensor] for tensor, _, _ in outputs(piece.job)]
            self._running[name] = RunningHash(self.writer, places, self._timeline)
        if name in self.waiting:
            self._running[name].follow(pool, self.whole)
        else:
            self.hashes[name] = self._running.pop(name).finish(pool)
