"""Headers that are small but costly to read, or that are no text, are refused soon."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from hlwq_cli.checkpoint.io import read_header
from hlwq_cli.errors import CorruptError
from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import LLAMA
from tests.support.files import write_header

EMPTY: dict[str, Any] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}


def refusal(path: Path) -> str:
    """The message of the refusal, after at most two seconds and 600 MB."""
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(CorruptError) as refused:
        read_header(path, path.name)
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10, "tracing memory takes most of it"
    assert peak < 600e6
    return str(refused.value)


def test_name_that_is_listed_twice_in_a_long_header_is_found_soon(tmp_path: Path) -> None:
    entries = ",".join(f'"t{i}":{json.dumps(EMPTY)}' for i in range(100_000))
    path = write_header(tmp_path / "a", f'{{{entries},"t99999":{json.dumps(EMPTY)}}}'.encode())
    assert "'t99999' is listed twice" in refusal(path)


def test_tensor_of_400000_dimensions_is_refused(tmp_path: Path) -> None:
    path = write_header(tmp_path / "a", {"t": EMPTY | {"shape": [1000] * 400_000, "data_offsets": [0, 1]}}, b"0")
    assert "has a shape that no tensor can have" in refusal(path)


@pytest.mark.parametrize("size", [2**63, 10**300, 10**4000])
def test_dimension_beyond_64_bits_is_refused(tmp_path: Path, size: int) -> None:
    path = write_header(tmp_path / "a", {"t": EMPTY | {"shape": [size, 0]}})
    assert "has a shape that no tensor can have" in refusal(path)


def test_number_of_more_digits_than_python_reads_is_refused(tmp_path: Path) -> None:
    raw = b'{"t":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}'
    assert "is not valid" in refusal(write_header(tmp_path / "a", raw))


def test_header_of_too_many_objects_is_refused(tmp_path: Path) -> None:
    raw = b'{"t":[' + b"{}," * 1_000_000 + b"{}]}"
    assert "more than 400,000 entries" in refusal(write_header(tmp_path / "a", raw))


def test_header_that_is_too_long_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = write_header(tmp_path / "a", b"{}", length=30_000_000)
    with path.open("ab") as file:
        file.truncate(10**11)
    assert "is not a safetensors file" in refusal(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_header_in_another_encoding_than_utf8_is_refused(tmp_path: Path, encoding: str) -> None:
    assert "is not valid" in refusal(write_header(tmp_path / "a", json.dumps({"t": EMPTY}).encode(encoding)))


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", "a\x00b", "a\x9bb", "a\ud800b"])
def test_name_with_control_characters_is_refused_and_not_shown(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    write_header(tmp_path / "model.safetensors", {name: EMPTY})
    ran = hlwq("quantize", tmp_path, "--dry-run")
    assert_refused(ran, 1, "model.safetensors has the name")
    assert ran.err.replace("\n", "").isprintable()
