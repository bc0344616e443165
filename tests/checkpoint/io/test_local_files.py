"""A source folder of a stranger: only regular files inside it are read, whatever else has their names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hlwq_cli.checkpoint.io import check_inside, is_inside, list_files
from hlwq_cli.errors import CorruptError
from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import LLAMA, add_sidecar_files, dense, save_tensors, tiny_llama
from tests.support.files import read_json, tree

SECRET = "SECRET-CANARY"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "m")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "token"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def replace(path: Path, kind: str) -> None:
    """Put something else in a file's place."""
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to({"a device": "/dev/zero", "a loop": path.name, "nowhere": "nobody"}[kind])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "a loop", "nowhere"])
def test_what_is_no_regular_file_is_refused(model: Path, tmp_path: Path, name: str, kind: str) -> None:
    replace(model / name, kind)
    ran = hlwq("quantize", model, tmp_path / "out")
    assert_refused(ran, ran.code)
    assert ran.code in (1, 3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a loop", "nowhere"])
def test_other_names_that_are_no_regular_files_are_not_copied(model: Path, tmp_path: Path, kind: str) -> None:
    replace(model / "notes.txt", kind)
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    assert "notes.txt" not in tree(tmp_path / "out")


@pytest.mark.parametrize("name", ["notes.txt", "tokenizer.json", "config.json", "README.md", "model.safetensors"])
@pytest.mark.parametrize("is_absolute", [True, False], ids=["absolute", "relative"])
def test_link_that_leads_out_of_the_source_is_refused(
    model: Path, secret: Path, tmp_path: Path, name: str, is_absolute: bool
) -> None:
    if (model / name).exists():
        shutil.move(model / name, secret)
    (model / name).symlink_to(secret if is_absolute else Path("../home/token"))
    for options in ([tmp_path / "out"], ["--dry-run"]):
        ran = hlwq("quantize", model, *options)
        assert_refused(ran, 1, f"{name} in {model} is a link to a file outside the folder.")
    assert not (tmp_path / "out").exists()


def test_link_within_the_source_is_copied_as_a_file(model: Path, tmp_path: Path) -> None:
    (model / "a.txt").write_text("a")
    (model / "b.txt").symlink_to("a.txt")
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    assert not (tmp_path / "out" / "b.txt").is_symlink()
    assert (tmp_path / "out" / "b.txt").read_text() == "a"


def test_linked_folder_outside_the_source_is_not_copied(model: Path, secret: Path, tmp_path: Path) -> None:
    (model / "assets").symlink_to(secret.parent)
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    assert SECRET.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_snapshot_in_the_cache_of_the_hub_is_read_through_its_links(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert hlwq("quantize", snapshot, tmp_path / "out").code == 0
    (snapshot / "notes.txt").symlink_to(tmp_path / "outside.txt")
    (tmp_path / "outside.txt").write_text(SECRET)
    with pytest.raises(CorruptError, match="outside the folder"):
        check_inside(snapshot, "notes.txt")


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"a\x1b[31mred.txt", b"two\nlines.txt"], ids=str)
def test_file_whose_name_no_manifest_holds_is_left_out_with_a_warning(model: Path, tmp_path: Path, name: bytes) -> None:
    (model / os.fsdecode(name)).write_text("x")
    ran = hlwq("quantize", model, tmp_path / "out", "--json")
    assert ran.code == 0
    (warning,) = json.loads(ran.out)["warnings"]
    assert warning.startswith("Left out, as their names are not UTF-8 or have control characters: ")
    assert warning.isprintable()
    assert hlwq("inspect", tmp_path / "out", "--verify").code == 0


def test_folder_whose_name_is_not_utf8_can_be_quantized(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / os.fsdecode(b"caf\xe9"))
    out = tmp_path / os.fsdecode(b"r\xe9sultat")
    for form in ("quiet", "human", "json"):
        ran = hlwq("quantize", model, out, "--format", form)
        assert ran.code == 0, ran.err
    assert read_json(out / "hlwq_manifest.json")["source"]["id"] == "caf\udce9"
    assert (out / "README.md").read_bytes().decode()


def test_config_with_half_a_surrogate_pair_does_not_end_a_finished_run(tmp_path: Path) -> None:
    model = save_tensors(tmp_path / "m", dense(), LLAMA | {"note": "\ud800"})
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    assert read_json(tmp_path / "out" / "config.json")["note"] == "\ud800"


def test_results_of_a_bench_beside_the_source_are_not_taken_over(model: Path, tmp_path: Path) -> None:
    for name in ("hlwq_bench.json", "hlwq_bench.png"):
        (model / name).write_text("{}")
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    assert not {"hlwq_bench.json", "hlwq_bench.png"} & set(tree(tmp_path / "out"))


def rewrite(path: Path, middle: bytes) -> None:
    """Change a file in its middle; its size and both ends stay."""
    raw = bytearray(path.read_bytes())
    at = len(raw) // 2
    raw[at : at + len(middle)] = middle
    path.write_bytes(raw)


def test_source_that_changed_inside_a_tensor_is_not_complete_already(tmp_path: Path) -> None:
    model = save_tensors(tmp_path / "m", dense(3, width=512), LLAMA)
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    rewrite(model / "model.safetensors", bytes(4096))
    assert_refused(hlwq("quantize", model, tmp_path / "out"), 5, "differs in source.modified.model.safetensors")
    assert hlwq("quantize", model, tmp_path / "out", "--overwrite").code == 0
    assert hlwq("quantize", model, tmp_path / "fresh").code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_result_that_does_not_know_when_its_source_changed_is_still_complete(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert hlwq("quantize", model, out).code == 0
    manifest = read_json(out / "hlwq_manifest.json")
    del manifest["fingerprint"]["source"]["modified"], manifest["fingerprint"]["tensors"]
    (out / "hlwq_manifest.json").write_text(json.dumps(manifest))
    assert "is complete already" in hlwq("quantize", model, out).out


def test_same_weights_copied_anew_have_the_same_digest(model: Path, tmp_path: Path) -> None:
    from hlwq_cli.checkpoint import open_coded

    other = Path(shutil.copytree(model, tmp_path / "copy", copy_function=shutil.copyfile))
    os.utime(other / "model.safetensors", ns=(1, 1))
    digests = set()
    for source in (model, other):
        out = tmp_path / f"out-{source.name}"
        assert hlwq("quantize", source, out).code == 0
        digests.add(open_coded(out).manifest.digest)
    assert len(digests) == 1


def test_listing_names_regular_files_only(model: Path) -> None:
    add_sidecar_files(model)
    replace(model / "pipe", "a pipe")
    replace(model / "loop", "a loop")
    found = list_files(model)
    assert "assets/deep/notes.txt" in found
    assert not {"pipe", "loop"} & set(found)
    assert list(found) == sorted(found)


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "a/../b", "a//b", "../a", "a\0b", "a/", 5, None])
def test_path_that_leaves_the_folder_is_not_inside(name: Any) -> None:
    assert not is_inside(name)


@pytest.mark.parametrize("command", ["quantize", "inspect", "export", "bench"])
def test_name_that_no_file_can_have_is_not_found(command: str, tmp_path: Path) -> None:
    options = {"quantize": ["--dry-run"], "export": [tmp_path / "out"], "bench": ["--ppl"]}.get(command, [])
    for name in ("x" * 5000, "a\0b"):
        ran = hlwq(command, name, *options)
        assert ran.code in (2, 3), ran
        assert "Unexpected" not in ran.err


def test_json_file_that_is_too_large_is_refused_without_reading_it(model: Path, tmp_path: Path) -> None:
    os.truncate(model / "config.json", 2 * 10**11)
    assert_refused(hlwq("quantize", model, tmp_path / "out"), 1, "config.json is larger than 100,000,000 bytes.")


Copied = Callable[[Path], Path]


def test_missing_or_replaced_file_of_a_result_is_refused_by_export(
    coded: Callable[[str], Path], copied: Copied, tmp_path: Path
) -> None:
    out = copied(coded("qwen3"))
    (out / "tokenizer.json").unlink()
    assert_refused(hlwq("export", out, tmp_path / "plain"), 3, "There is no tokenizer.json in")
    for kind in ("a folder", "a pipe", "a device", "a loop"):
        if (out / "tokenizer.json").is_dir():
            (out / "tokenizer.json").rmdir()
        replace(out / "tokenizer.json", kind)
        assert_refused(hlwq("export", out, tmp_path / "plain"), 1, "tokenizer.json in")
        assert hlwq("inspect", out, "--verify").code == 6
    assert not (tmp_path / "plain").exists()
