"""Files are created under names of their own, and no link that somebody planted is written through."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.checkpoint.format import copy_file, new_file, write_file, write_json
from hlwq_cli.errors import CorruptError, HlwqError, NotAllowedError
from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import tiny_llama
from tests.support.files import read_json, tree


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside the folder that is written to."""
    path = tmp_path / "home" / "authorized_keys"
    path.parent.mkdir()
    path.write_text("mine")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("planted", [".README.md.partial", "README.md"])
def test_no_link_is_followed_by_a_write(folder: Path, victim: Path, planted: str) -> None:
    (folder / planted).symlink_to(victim)
    write_file(folder / "README.md", b"new")
    assert victim.read_text() == "mine"
    assert not (folder / "README.md").is_symlink()
    assert tree(folder).keys() == {"README.md"}
    assert (folder / "README.md").read_bytes() == b"new"


def test_no_link_is_followed_to_a_file_that_does_not_exist_yet(folder: Path, tmp_path: Path) -> None:
    (folder / ".a.partial").symlink_to(tmp_path / "home-of-nobody")
    write_file(folder / "a", b"new")
    assert not (tmp_path / "home-of-nobody").exists()


def test_no_linked_sub_folder_is_written_into(folder: Path, victim: Path, tmp_path: Path) -> None:
    (folder / "assets").symlink_to(victim.parent)
    (tmp_path / "source").write_text("new")
    with pytest.raises(NotAllowedError, match="is a link"):
        copy_file(tmp_path / "source", folder, "assets/authorized_keys")
    assert victim.read_text() == "mine"


def test_failed_write_leaves_the_former_file_and_nothing_else(folder: Path) -> None:
    write_file(folder / "a", b"former")
    file_of_half = new_file(folder / "a")
    file_of_half.__enter__().write(b"half")
    error = ZeroDivisionError()
    assert not file_of_half.__exit__(ZeroDivisionError, error, None)
    assert tree(folder).keys() == {"a"}
    assert (folder / "a").read_bytes() == b"former"


def test_copy_of_another_content_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("changed")
    with pytest.raises(CorruptError, match="does not match the manifest"):
        copy_file(tmp_path / "source", folder, "a", sha256="0" * 64)
    assert tree(folder) == {}


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_folder_or_pipe_is_never_replaced(folder: Path, kind: str) -> None:
    (folder / "a").mkdir() if kind == "folder" else os.mkfifo(folder / "a")
    with pytest.raises(HlwqError, match="cannot be written to"):
        write_file(folder / "a", b"new")
    assert not (folder / "a").is_file()


def test_name_as_long_as_the_system_allows_can_be_written(folder: Path) -> None:
    name = "n" * 255
    write_file(folder / name, b"new")
    assert tree(folder).keys() == {name}


def test_text_that_utf8_cannot_hold_is_escaped(folder: Path) -> None:
    write_json(folder / "a.json", {"path": "caf\udce9", "other": "é"})
    assert read_json(folder / "a.json") == {"path": "caf\udce9", "other": "é"}
    write_json(folder / "b.json", {"path": "café"})
    assert "café" in (folder / "b.json").read_text()


@pytest.mark.parametrize("name", [".README.md.partial", ".hlwq_manifest.json.partial", "README.md"])
def test_card_writes_through_no_planted_link(
    coded: Callable[[str], Path], copied: Callable[[Path], Path], victim: Path, name: str
) -> None:
    out = copied(coded("qwen3"))
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(victim)
    assert hlwq("card", out).code == 0
    assert victim.read_text() == "mine"
    assert hlwq("inspect", out, "--verify").code == 0


def test_quantize_writes_shards_through_no_planted_link(tmp_path: Path, folder: Path, victim: Path) -> None:
    (folder / ".model.safetensors.partial").symlink_to(victim)
    assert hlwq("quantize", tiny_llama(tmp_path / "m"), folder).code == 0
    assert victim.read_text() == "mine"
    assert hlwq("inspect", folder, "--verify").code == 0


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_trace_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "trace.json"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    monkeypatch.setenv("HLWQ_TRACE", str(path))
    ran = hlwq("quantize", tiny_llama(tmp_path / "m"), tmp_path / "out")
    assert_refused(ran, 4, "cannot be written to.")
    assert not (tmp_path / "out").exists()


def test_trace_of_a_failed_run_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLWQ_TRACE", str(tmp_path / "trace.json"))
    assert_refused(hlwq("quantize", tmp_path / "nowhere", tmp_path / "out"), 3)
    assert read_json(tmp_path / "trace.json")["traceEvents"]
