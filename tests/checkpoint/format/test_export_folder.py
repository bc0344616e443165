"""An export that is interrupted continues; one whose checkpoint is replaced meanwhile fails and mixes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.checkpoint import Progress, export, load_recipe, quantize
from hlwq_cli.errors import ConflictError, CorruptError, NonFiniteError
from hlwq_cli.hub import remake_card
from tests.support.builders import LLAMA, dense, save_tensors
from tests.support.files import tree


def interrupt(after: int) -> Callable[[Progress], None]:
    """A callback that raises KeyboardInterrupt at its `after`-th event."""
    events = iter(range(after))

    def report(event: Progress) -> None:
        if next(events, None) is None:
            raise KeyboardInterrupt

    return report


def test_interrupted_export_continues_after_its_finished_files(coded: Callable[[str], Path], tmp_path: Path) -> None:
    source, out = coded("qwen3"), tmp_path / "out"
    export(source, tmp_path / "alone", max_shard_bytes=100_000)
    with pytest.raises(KeyboardInterrupt):
        export(source, out, max_shard_bytes=100_000, progress=interrupt(after=12))
    finished = {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}
    assert finished
    export(source, out, max_shard_bytes=100_000)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert tree(out) == tree(tmp_path / "alone")


def test_unfinished_export_of_other_settings_is_replaced(coded: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export(coded("qwen3"), out, max_shard_bytes=60_000, progress=interrupt(after=12))
    (out / "mine.txt").write_text("mine")
    export(coded("llama"), out, "f32")
    (out / "mine.txt").unlink()
    export(coded("llama"), tmp_path / "alone", "f32")
    assert tree(out) == tree(tmp_path / "alone")


def test_finished_export_is_not_replaced(coded: Callable[[str], Path], tmp_path: Path) -> None:
    export(coded("qwen3"), tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(ConflictError, match="is not empty"):
        export(coded("llama"), tmp_path / "out")
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("after", [0, 5, 20])
def test_export_of_a_folder_that_is_replaced_meanwhile_fails(
    coded: Callable[[str], Path],
    copied: Callable[[Path], Path],
    family: Callable[[str], Path],
    tmp_path: Path,
    after: int,
) -> None:
    folder = copied(coded("qwen3"))
    events = iter(range(after))

    def replace(event: Progress) -> None:
        if next(events, None) is None and (folder / "hlwq_manifest.json").stat().st_ino == before:
            quantize(str(family("llama")), folder, load_recipe(), overwrite=True)

    before = (folder / "hlwq_manifest.json").stat().st_ino
    with pytest.raises(CorruptError):
        export(folder, tmp_path / "out", max_shard_bytes=100_000, progress=replace)
    assert not (tmp_path / "out" / "config.json").exists()


def test_card_that_is_made_again_meanwhile_does_not_matter(
    coded: Callable[[str], Path], copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = copied(coded("qwen3"))
    export(folder, tmp_path / "out", progress=lambda event: remake_card(folder, "ann/model") and None)
    export(coded("qwen3"), tmp_path / "alone")
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")


def test_float16_overflow_is_found_again_after_an_interruption(tmp_path: Path) -> None:
    """A file with such weights is never taken for finished."""
    tensors = {n: t.float() * (1e6 if "q_proj" in n else 1) for n, t in dense(3).items()}
    model = save_tensors(tmp_path / "m", tensors, LLAMA)
    quantize(str(model), tmp_path / "coded", load_recipe())
    for after in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path / "coded", tmp_path / "out", "f16", max_shard_bytes=40_000, progress=interrupt(after=after))
    with pytest.raises(NonFiniteError, match="beyond 65504"):
        export(tmp_path / "coded", tmp_path / "out", "f16", max_shard_bytes=40_000)
    assert tree(tmp_path / "out") == {}
