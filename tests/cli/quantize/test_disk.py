"""Disks that are full, too small or read-only: file systems mounted in memory, and a limit on file size."""

import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hlwq_cli.checkpoint import Progress, load_recipe, quantize
from hlwq_cli.errors import OutOfSpaceError
from tests.cli.run_command import assert_refused, hlwq, hlwq_process
from tests.support.builders import tiny_llama
from tests.support.files import tree

Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount a file system in memory with the given options."""
    mounted: list[Path] = []

    def make(options: str) -> Path:
        folder = tmp_path / f"mount-{len(mounted)}"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Fill the remaining space."""
    path = folder / "filler"
    with path.open("wb") as f:
        try:
            while True:
                f.write(bytes(1 << 16))
                f.flush()
        except OSError:
            pass
    return path


def test_disk_that_is_too_small_is_refused_before_any_work(tmp_path: Path, mount: Mount) -> None:
    disk = mount("size=8m")
    ran = hlwq("quantize", tiny_llama(tmp_path / "m"), disk / "out")
    assert_refused(ran, 1, f"{disk / 'out'} needs ", " of disk and has ")
    assert not [*disk.rglob("*.safetensors")]


def test_disk_that_fills_up_keeps_complete_shards_and_the_run_resumes(
    family: Callable[[str], Path], coded: Callable[[str], Path], mount: Mount
) -> None:
    disk = mount("size=80m")
    out, settings = disk / "out", load_recipe()

    def fill_after_the_second_shard(event: Progress) -> None:
        if event.file_done and event.files_done == 2:
            fill(disk)

    source = str(family("gemma4"))
    with pytest.raises(OutOfSpaceError, match="is full"):
        quantize(source, out, settings, max_shard_bytes=150_000, progress=fill_after_the_second_shard)
    assert len([*out.glob("model-*.safetensors")]) == 2
    assert not [*out.glob(".*.partial")]
    (disk / "filler").unlink()
    assert quantize(source, out, settings, max_shard_bytes=150_000).resumed_shards == 2
    assert tree(out) == tree(coded("gemma4"))


def test_limit_on_file_size_is_reported_as_an_error(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m")

    ran = hlwq_process("quantize", model, tmp_path / "out", "-q", limits={resource.RLIMIT_FSIZE: 20_000})
    assert_refused(ran, 1, f"The disk of {tmp_path / 'out'} is full.", "run the same command again; it continues.")
    assert not [*(tmp_path / "out").glob(".*.partial")]
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    assert hlwq("inspect", tmp_path / "out", "--verify").code == 0


def test_overwrite_keeps_the_earlier_result_when_the_disk_is_too_small(tmp_path: Path, mount: Mount) -> None:
    disk, model = mount("size=70m"), tiny_llama(tmp_path / "m")
    assert hlwq("quantize", model, disk / "out").code == 0
    before = tree(disk / "out")
    (disk / "filler").write_bytes(bytes(9_000_000))
    assert_refused(hlwq("quantize", model, disk / "out", "--bits", "4", "--overwrite"), 1, "of disk")
    assert tree(disk / "out") == before


def test_read_only_disk_is_refused_with_4(tmp_path: Path, mount: Mount) -> None:
    disk, model = mount("size=100m"), tiny_llama(tmp_path / "m")
    (disk / "empty").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for out in (disk / "new", disk / "empty"):
        assert_refused(hlwq("quantize", model, out), 4, "cannot be written to.", "Choose another output folder.")
    assert [p.name for p in disk.iterdir()] == ["empty"]


def test_read_only_disk_is_refused_by_export_with_4(coded: Callable[[str], Path], mount: Mount) -> None:
    disk = mount("size=100m")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert_refused(hlwq("export", coded("qwen3"), disk / "new"), 4, "cannot be written to.")


def test_output_path_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    ran = hlwq("quantize", tiny_llama(tmp_path / "m"), "/proc/hlwq")
    assert_refused(ran, ran.code, "/proc")
    assert ran.code in (1, 4)


def test_export_refuses_a_disk_that_is_too_small_before_any_work(coded: Callable[[str], Path], mount: Mount) -> None:
    disk = mount("size=200k")
    assert_refused(hlwq("export", coded("gemma4"), disk / "plain"), 1, "of disk")
    assert not [*disk.rglob("*.safetensors")]


def test_export_reports_a_disk_that_fills_up(coded: Callable[[str], Path], tmp_path: Path) -> None:
    ran = hlwq_process("export", coded("qwen3"), tmp_path / "plain", limits={resource.RLIMIT_FSIZE: 20_000})
    assert_refused(ran, 1, "is full.")
    assert not [*(tmp_path / "plain").glob("*.safetensors")]
