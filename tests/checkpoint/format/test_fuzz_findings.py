"""Faults that scripts/checks/fuzz.py found in the files of results and cards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hlwq_cli.checkpoint import inspect, load_recipe
from hlwq_cli.checkpoint.format import hash_file
from hlwq_cli.checkpoint.format.card_head import front_matter
from hlwq_cli.checkpoint.io import read_header
from hlwq_cli.errors import CorruptError, HlwqError, UsageError
from tests.support.files import edit_json, read_json, write_header

MANIFEST = "hlwq_manifest.json"
DEEP = "[" * 20_000


@pytest.mark.parametrize("metadata", ["/etc/passwd", [1], 7, True, {"format": ["pt"]}, {"format": 1}, {"a": {}}])
def test_metadata_that_are_not_texts_are_refused(tmp_path: Path, metadata: Any) -> None:
    path = write_header(tmp_path / "model.safetensors", {"__metadata__": metadata})
    with pytest.raises(CorruptError, match=r"metadata of model\.safetensors are not texts by name"):
        read_header(path, path.name)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_metadata_of_texts_are_read(tmp_path: Path, metadata: Any) -> None:
    path = write_header(tmp_path / "model.safetensors", {"__metadata__": metadata})
    assert read_header(path, path.name) == ({}, metadata or {})


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
