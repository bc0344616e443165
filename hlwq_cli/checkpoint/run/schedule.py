"""The order of a run's slices: by source file, interleaving shards, and interleaving large and small tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter

from ...codec import ceil_div
from ..format import Shard
from ..io import Source
from .slices import Slice

Work = list[tuple[Shard, Slice]]


def interleave_shards(source: Source, work: Work, at_once: int) -> Work:
    """Return slices grouped by the file that they are read from; in each group at most `at_once` shards take turns.

    Shards are divided evenly into rounds, so that no last shard has all writers to itself. For the same reason, local
    files count as one group: otherwise embeddings in a last file would be written and hashed when nothing else is left.

    Args:
        source: the source of the slices.
        work: (shard, slice) pairs in the order of the plan.
        at_once: maximum number of shards that are open at a time.
    """
    at_hand = source.repo is None and at_once > 1
    by_file: dict[str, dict[str, Work]] = {f: {} for f in dict.fromkeys(t.file for t in source.tensors.values())}
    for entry in work:
        file = next(iter(by_file)) if at_hand else entry[1].info.file
        by_file[file].setdefault(entry[0].file, []).append(entry)
    ordered: Work = []
    for shards in by_file.values():
        queues = [_interleave_tensors(queue) if at_hand else queue for queue in shards.values()]
        rounds = ceil_div(len(queues), at_once)
        for i in range(rounds):
            ordered += _interleave(queues[i * len(queues) // rounds : (i + 1) * len(queues) // rounds])
    return ordered


def _interleave_tensors(work: Work) -> Work:
    """Return a shard's slices: large tensors, the largest first, interleaved with tensors of a single slice.

    The largest come first because one thread hashes a tensor. Interleaving hides the fixed cost of small tensors
    while other threads move bytes.
    """
    slices_of = Counter(piece.planned.name for _, piece in work)
    several = [entry for entry in work if slices_of[entry[1].planned.name] > 1]
    single = [entry for entry in work if slices_of[entry[1].planned.name] == 1]
    return _interleave([sorted(several, key=lambda entry: -entry[1].planned.nbytes), single])


def _interleave(queues: Sequence[Work]) -> Work:
    """Merge several queues. Each keeps its order, and its entries are spread evenly over the result."""
    ranked = [((i + 0.5) / len(queue), entry) for queue in queues for i, entry in enumerate(queue)]
    return [entry for _, entry in sorted(ranked, key=itemgetter(0))]
