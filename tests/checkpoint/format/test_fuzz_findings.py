"""Faults that scripts/checks/fuzz.py found in the files of results and cards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

from hlwq_cli.checkpoint import inspect, load_recipe
from hlwq_cli.checkpoint.format import hash_file
from hlwq_cli.checkpoint.format.card_head import front_matter
from hlwq_cli.checkpoint.io import read_header
from hlwq_cli.errors import CorruptError, HlwqError, UsageError
from tests.support.files import edit_json, read_json, write_header

MANIFEST = "hlwq_manifest.json"
DEEP = "[" * 20_000


@pytest.mark.parametrize(
    "metadata", ["/etc/passwd", [1], 7, True, "", [], 0, False, {"format": ["pt"]}, {"format": 1}, {"a": {}}]
)
def test_metadata_that_are_not_texts_are_refused(tmp_path: Path, metadata: Any) -> None:
    path = write_header(tmp_path / "model.safetensors", {"__metadata__": metadata})
    with pytest.raises(CorruptError, match=r"metadata of model\.safetensors are not texts by name"):
        read_header(path, path.name)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_metadata_of_texts_are_read(tmp_path: Path, metadata: Any) -> None:
    path = write_header(tmp_path / "model.safetensors", {"__metadata__": metadata})
    assert read_header(path, path.name) == ({}, metadata or {})


@pytest.mark.parametrize("half", [r"\ud800", r"\uDC00"])
@pytest.mark.parametrize("header", ['{"__metadata__": {"%s": "pt"}}', '{"__metadata__": {"a": "%s"}}', '{"%s": {}}'])
def test_half_a_character_is_refused_as_safetensors_does(tmp_path: Path, header: str, half: str) -> None:
    path = tmp_path / "model.safetensors"
    raw = (header % half).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(SafetensorError):
        safe_open(path, "pt")
    with pytest.raises(CorruptError, match=r"header of model\.safetensors has"):
        read_header(path, path.name)


def test_a_whole_character_of_two_halves_is_read(tmp_path: Path) -> None:
    path = write_header(tmp_path / "model.safetensors", {"__metadata__": {"a": "\U0001f600"}})
    assert b"\\ud83d" in path.read_bytes()
    assert read_header(path, path.name) == ({}, {"a": "\U0001f600"})


@pytest.mark.parametrize("option", ["tensor", "include", "exclude"])
@pytest.mark.parametrize("value", [7, "abc", {"a": 1}, [1], None])
def test_a_recipe_in_the_manifest_whose_options_are_no_texts_is_refused(
    coded: Callable[[str], Path], copied: Callable[[Path], Path], option: str, value: Any
) -> None:
    folder = copied(coded("qwen3"))
    fingerprint = read_json(folder / MANIFEST)["fingerprint"]
    edit_json(folder / MANIFEST, fingerprint=fingerprint | {"recipe": fingerprint["recipe"] | {option: value}})
    with pytest.raises(CorruptError, match=f"{option} of recipe is"):
        inspect(folder)


@pytest.mark.parametrize("recipe", [7, "default", [], None])
def test_a_recipe_in_the_manifest_that_is_none_is_refused(
    coded: Callable[[str], Path], copied: Callable[[Path], Path], recipe: Any
) -> None:
    folder = copied(coded("qwen3"))
    fingerprint = read_json(folder / MANIFEST)["fingerprint"]
    edit_json(folder / MANIFEST, fingerprint=fingerprint | {"recipe": recipe})
    with pytest.raises(CorruptError, match="recipe is"):
        inspect(folder)


@pytest.mark.parametrize(
    "part", [{"without_moments": 7}, {"without_moments": {"a": 1}}, {"origin": 7}, {"tokens": "x"}]
)
def test_a_calibration_in_the_manifest_that_is_none_is_refused(
    coded: Callable[[str], Path], copied: Callable[[Path], Path], part: dict[str, Any]
) -> None:
    folder = copied(coded("qwen3"))
    edit_json(folder / MANIFEST, calibration={"kind": "stream", "origin": "a"} | part)
    with pytest.raises(CorruptError, match="of calibration is"):
        inspect(folder)


@pytest.mark.parametrize(("part", "key"), [("tool", "version"), ("source", "revision"), ("source", "id")])
def test_manifest_without_a_part_of_the_card_is_refused(
    coded: Callable[[str], Path], copied: Callable[[Path], Path], part: str, key: str
) -> None:
    folder = copied(coded("qwen3"))
    document = read_json(folder / MANIFEST)[part]
    del document[key]
    edit_json(folder / MANIFEST, **{part: document})
    with pytest.raises(CorruptError, match=f"not a valid manifest: it lacks '{key}'"):
        inspect(folder)


def test_lists_within_lists_take_no_time(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: {DEEP}\n---\n")
    (tmp_path / "mine.yaml").write_text(DEEP)
    began = time.process_time()
    assert front_matter(tmp_path / "README.md") == {}
    with pytest.raises(UsageError, match="is not valid YAML"):
        load_recipe(str(tmp_path / "mine.yaml"))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "data", [b"a: \xed\xa0\x80", b"date: 2026-99-99", b"scheme: [abc]\nbits: {}", b"scheme: 5\nbits: 5"]
)
def test_recipes_that_are_not_valid_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(data)
    with pytest.raises(UsageError, match=r"The recipe .*mine\.yaml is not"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("/proc/self/mem")  # a regular file, whose first byte is not readable
    with pytest.raises(HlwqError, match=r"tokenizer\.json"):
        hash_file(tmp_path / "tokenizer.json")
