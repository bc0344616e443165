"""The same source and arguments give the same bytes: on any number of threads, after any interruption."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.checkpoint import Progress, QuantizeResult, load_recipe, quantize
from tests.support.files import tree

Family = Callable[[str], Path]


@pytest.mark.parametrize("recipe", ["default", "classic"])
def test_threads_do_not_change_a_byte(family: Family, tmp_path: Path, family_name: str, recipe: str) -> None:
    for threads in (1, 2, 5):
        quantize(
            str(family(family_name)),
            tmp_path / str(threads),
            load_recipe(recipe),
            threads=threads,
            max_shard_bytes=150_000,
        )
    assert tree(tmp_path / "2") == tree(tmp_path / "1")
    assert tree(tmp_path / "5") == tree(tmp_path / "1")


def test_a_copy_of_the_source_under_the_same_name_gives_the_same_bytes(
    family: Family, coded: Family, tmp_path: Path
) -> None:
    import shutil

    source = shutil.copytree(family("gemma4"), tmp_path / "elsewhere" / "gemma4")
    quantize(str(source), tmp_path / "out", load_recipe(), max_shard_bytes=150_000)
    assert tree(tmp_path / "out") == tree(coded("gemma4"))


def test_shard_size_does_not_change_the_tensors(family: Family, coded: Family, tmp_path: Path) -> None:
    from tests.support.files import read_tensors

    quantize(str(family("gemma4")), tmp_path / "out", load_recipe())
    assert read_tensors(tmp_path / "out") == read_tensors(coded("gemma4"))


def test_a_run_stopped_after_any_shard_continues_to_the_same_bytes(
    family: Family, coded: Family, tmp_path: Path
) -> None:
    shards = len([*coded("gemma4").glob("*.safetensors")])
    for stop in range(1, shards + 1):
        out = tmp_path / str(stop)

        def interrupt(event: Progress, stop: int = stop) -> None:
            if event.file_done and event.files_done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quantize(str(family("gemma4")), out, load_recipe(), max_shard_bytes=150_000, progress=interrupt)
        result = quantize(str(family("gemma4")), out, load_recipe(), max_shard_bytes=150_000)
        assert result.resumed_shards == stop
        assert tree(out) == tree(coded("gemma4"))


def test_shards_with_another_kind_of_hash_are_made_again(family: Family, coded: Family, tmp_path: Path) -> None:
    out, journal = tmp_path / "out", tmp_path / "out" / ".hlwq_run.jsonl"

    def interrupt(event: Progress) -> None:
        if event.files_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(str(family("gemma4")), out, load_recipe(), max_shard_bytes=150_000, progress=interrupt)
    first, *lines = journal.read_text().splitlines()
    noted = [json.loads(line) for line in lines]
    for record in [t for shard in noted for t in (*shard["coded"], *shard["kept"])]:
        record["sha256"] = record.pop("blake3")
    journal.write_text("\n".join([first, *map(json.dumps, noted), ""]))
    assert quantize(str(family("gemma4")), out, load_recipe(), max_shard_bytes=150_000).resumed_shards == 0
    assert tree(out) == tree(coded("gemma4"))


def test_an_overwriting_run_that_was_stopped_continues_with_the_same_arguments(family: Family, tmp_path: Path) -> None:
    def run(bits: int, stop: int = 0) -> QuantizeResult:
        def interrupt(event: Progress) -> None:
            if stop and event.files_done == stop:
                raise KeyboardInterrupt

        recipe = load_recipe(bits=bits)
        return quantize(
            str(family("gemma4")), tmp_path / "out", recipe, max_shard_bytes=150_000, overwrite=True, progress=interrupt
        )

    run(bits=4)
    with pytest.raises(KeyboardInterrupt):
        run(bits=5, stop=2)
    assert run(bits=5).resumed_shards == 2


def test_progress_never_goes_back_and_ends_with_all_bytes(family: Family, tmp_path: Path) -> None:
    events: list[Progress] = []
    quantize(str(family("gemma4")), tmp_path / "out", load_recipe(), max_shard_bytes=150_000, progress=events.append)
    done = [e.done for e in events]
    assert done == sorted(done)
    assert done[-1] == events[-1].total
    assert [e.files_done for e in events if e.file_done] == list(range(1, events[-1].files + 1))


def test_a_second_run_does_nothing_and_says_so(family: Family, coded: Family) -> None:
    before = {p: p.stat().st_mtime_ns for p in coded("gemma4").iterdir()}
    result = quantize(str(family("gemma4")), coded("gemma4"), load_recipe(), max_shard_bytes=150_000)
    assert result.already_complete
    assert {p: p.stat().st_mtime_ns for p in coded("gemma4").iterdir()} == before
