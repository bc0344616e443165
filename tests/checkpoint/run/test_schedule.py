"""In which order a run's slices are taken: shards in turns, the largest tensors first, small ones among them."""

from collections import Counter
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from hlwq_cli.checkpoint import CodedTensor, load_recipe, make_plan, open_source
from hlwq_cli.checkpoint.format import divide
from hlwq_cli.checkpoint.io import HubRepo, Source
from hlwq_cli.checkpoint.run.schedule import Work, interleave_shards
from hlwq_cli.checkpoint.run.slices import slices
from tests.support.builders import LLAMA, dense, save_shards, save_tensors


def opened(path: Path, max_bytes: int, everything: bool = True) -> tuple[Source, Work]:
    """A source and its work, each shard's in order; without what is kept where not `everything`."""
    source = open_source(str(path))
    planned: Any = [t for t in make_plan(source, load_recipe()).tensors if everything or isinstance(t, CodedTensor)]
    work = [(shard, piece) for shard in divide(planned, max_bytes) for piece in slices(shard, 3000)]
    source.close()
    return source, work


@pytest.mark.parametrize(("at_once", "groups"), [(1, 10), (4, 3), (9, 2), (10, 1), (12, 1)])
def test_shards_that_take_turns_are_divided_evenly(tmp_path: Path, at_once: int, groups: int) -> None:
    source, work = opened(save_tensors(tmp_path / "m", dense(10), LLAMA), 1, everything=False)
    ordered = [shard.file for shard, _ in interleave_shards(source, work, at_once)]
    together = [len({*ordered[first : first + at_once]}) for first in (0, len(ordered) - at_once)]
    assert len({*ordered}) == 10
    assert len(ordered) == 10 * 6
    assert min(together) == 10 // groups


def test_shards_of_all_local_files_take_turns(tmp_path: Path) -> None:
    """Else a last file's one shard would be left to all writers, and to one thread that hashes it."""
    tensors = dense(10)
    names = sorted(tensors)
    files = {"a.safetensors": names[:-2], "b.safetensors": names[-2:]}
    model = save_shards(tmp_path / "m", {f: {n: tensors[n] for n in some} for f, some in files.items()}, LLAMA)
    source, work = opened(model, 1, everything=False)
    ordered = interleave_shards(source, work, 100)
    assert len({piece.info.file for _, piece in ordered}) == 2
    assert len({shard.file for shard, _ in ordered[:10]}) == 10


def test_files_of_the_hub_are_read_once_and_in_order(tmp_path: Path) -> None:
    """They are fetched one ahead, and removed when they have been read."""
    tensors = dense(10)
    names = [*sorted(tensors)[::2], *sorted(tensors)[1::2]]
    files = {f"{n}.safetensors": {name: tensors[name] for name in names[n * 8 :][:8]} for n in range(3)}
    source, work = opened(save_shards(tmp_path / "m", files, LLAMA), 20_000)
    source.repo = cast(HubRepo, object())
    read = [piece.info.file for _, piece in interleave_shards(source, work, 12)]
    assert [file for file, _ in groupby(read)] == list(files)
    assert len(read) == len(work)


def test_shards_of_many_slices_and_of_few_end_together(tmp_path: Path) -> None:
    """Else the last slices would all be of one shard, which takes one writer at a time."""
    source, work = opened(save_tensors(tmp_path / "m", dense(3), LLAMA), 30_000)
    ordered = [shard.file for shard, _ in interleave_shards(source, work, 100)]
    counts = Counter(ordered)
    assert max(counts.values()) > 2 * min(counts.values())
    last = {file: max(n for n, f in enumerate(ordered) if f == file) for file in counts}
    assert min(last.values()) >= 0.8 * len(ordered)


def test_a_shard_begins_with_its_largest_tensors_and_interleaves_those_of_one_slice(tmp_path: Path) -> None:
    """Else one thread would hash the largest when nothing else is left, or threads would wait for the smallest."""
    source, work = opened(save_tensors(tmp_path / "m", dense(3), LLAMA), 10**9)
    assert interleave_shards(source, work, 1) == work
    pieces = [piece for _, piece in interleave_shards(source, work, 12)]
    by_tensor = {piece.planned.name: [p for _, p in work if p.planned is piece.planned] for piece in pieces}
    assert all([p for p in pieces if p.planned.name == name] == parts for name, parts in by_tensor.items())
    several = [len(by_tensor[p.planned.name]) > 1 for p in pieces]
    sizes = [p.planned.nbytes for p, many in zip(pieces, several, strict=True) if many]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
    singles = [n for n, many in enumerate(several) if not many]
    gaps = {b - a for a, b in pairwise(singles)}
    assert len(singles) > 1
    assert min(gaps) > 1
    assert max(gaps) - min(gaps) <= 1
