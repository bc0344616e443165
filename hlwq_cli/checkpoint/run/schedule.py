"""The order of a run's work: by source file, shards in turns, large tensors and small ones side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter

from ..format.shards import Shard
from ..io.source import Source
from .slices import Slice

Work = list[tuple[Shard, Slice]]


def interleave_shards(source: Source, work: Work, at_once: int) -> Work:
    """Slices by the file they are read from, and of each file those of at most so many shards in turn.

    Shards are divided evenly, lest a last one have all writers to itself. For the same reason files that are all at
    hand count as one: embeddings in a last file of their own would be written and hashed when nothing else is left.
    """
    at_hand = source.repo is None and at_once > 1
    by_file: dict[str, dict[str, Work]] = {f: {} for f in dict.fromkeys(t.file for t in source.tensors.values())}
    for entry in work:
        file = next(iter(by_file)) if at_hand else entry[1].info.file
        by_file[file].setdefault(entry[0].file, []).append(entry)
    ordered: Work = []
    for shards in by_file.values():
        queues = [_interleave_tensors(queue) if at_hand else queue for queue in shards.values()]
        rounds = -(-len(queues) // at_once)
        for i in range(rounds):
            ordered += _interleave(queues[i * len(queues) // rounds : (i + 1) * len(queues) // rounds])
    return ordered


def _interleave_tensors(work: Work) -> Work:
    """A shard's slices: the largest tensors first, as one thread hashes a tensor, and among them those of one slice.

    What small ones cost beside their bytes is so done while others move bytes.
    """
    slices_of = Counter(piece.planned.name for _, piece in work)
    several = [entry for entry in work if slices_of[entry[1].planned.name] > 1]
    single = [entry for entry in work if slices_of[entry[1].planned.name] == 1]
    return _interleave([sorted(several, key=lambda entry: -entry[1].planned.nbytes), single])


def _interleave(queues: Sequence[Work]) -> Work:
    """Entries of several queues, each queue's in its order and evenly over the whole."""
    ranked = [((i + 0.5) / len(queue), entry) for queue in queues for i, entry in enumerate(queue)]
    return [entry for _, entry in sorted(ranked, key=itemgetter(0))]
