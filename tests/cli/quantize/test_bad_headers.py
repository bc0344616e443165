"""Safetensors headers that are wrong, overlap, repeat names or are not JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import LLAMA
from tests.support.files import write_header

A = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
B = {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 32]}
DATA = bytes(32)

LIES: dict[str, tuple[Any, bytes]] = {
    "more rows than bytes": ({"t": A | {"shape": [200, 2]}}, DATA[:16]),
    "fewer rows than bytes": ({"t": A | {"shape": [1, 2]}}, DATA[:16]),
    "another type": ({"t": A | {"dtype": "F64"}}, DATA[:16]),
    "unknown type": ({"t": A | {"dtype": "F31"}}, DATA[:16]),
    "no type": ({"t": {"shape": [4], "data_offsets": [0, 16]}}, DATA[:16]),
    "negative shape": ({"t": A | {"shape": [-2, -2]}}, DATA[:16]),
    "enormous shape": ({"t": A | {"shape": [2**62, 2**62]}}, DATA[:16]),
    "fractional shape": ({"t": A | {"shape": [2.5, 2]}}, DATA[:16]),
    "shape of words": ({"t": A | {"shape": ["2", "2"]}}, DATA[:16]),
    "no shape": ({"t": {"dtype": "F32", "data_offsets": [0, 16]}}, DATA[:16]),
    "shape that is a number": ({"t": A | {"shape": 4}}, DATA[:16]),
    "offsets backwards": ({"t": A | {"data_offsets": [16, 0]}}, DATA[:16]),
    "negative offsets": ({"t": A | {"data_offsets": [-16, 0]}}, DATA[:16]),
    "offsets past the end": ({"t": A | {"data_offsets": [64, 80]}}, DATA[:16]),
    "three offsets": ({"t": A | {"data_offsets": [0, 8, 16]}}, DATA[:16]),
    "offsets of null": ({"t": A | {"data_offsets": None}}, DATA[:16]),
    "an overlap": ({"t": A, "u": A | {"data_offsets": [8, 24]}}, DATA[:24]),
    "the same bytes twice": ({"t": A, "u": A}, DATA[:16]),
    "a hole": ({"t": A, "u": B | {"data_offsets": [20, 36]}}, DATA + bytes(4)),
    "bytes after the last tensor": ({"t": A}, DATA),
    "bytes before the first tensor": ({"t": B}, DATA),
    "less data than tensors": ({"t": A, "u": B}, DATA[:20]),
    "an entry that is a list": ({"t": [1, 2]}, b""),
    "an entry that is null": ({"t": None}, b""),
    "a list": ([1, 2, 3], b""),
    "a number": (5, b""),
    "null": (None, b""),
}


def checkpoint(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    write_header(folder / "model.safetensors", raw, data, length)
    return folder


@pytest.mark.parametrize("lie", LIES)
def test_invalid_header_is_refused(tmp_path: Path, lie: str) -> None:
    header, data = LIES[lie]
    ran = hlwq("quantize", checkpoint(tmp_path / "m", header, data), tmp_path / "out")
    assert_refused(ran, 1, "model.safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lie", ["more rows than bytes", "unknown type", "an overlap", "a hole"])
def test_refusal_names_the_tensor(tmp_path: Path, lie: str) -> None:
    header, data = LIES[lie]
    ran = hlwq("quantize", checkpoint(tmp_path / "m", header, data), tmp_path / "out")
    assert ran.err.startswith(("Error: t in model", "Error: u in model")), ran.err


def test_tensor_listed_twice_in_one_header_is_refused(tmp_path: Path) -> None:
    entry = json.dumps(A)
    header = f'{{"t": {entry}, "t": {entry}}}'.encode()
    ran = hlwq("quantize", checkpoint(tmp_path / "m", header, DATA[:16]), tmp_path / "out")
    assert_refused(ran, 1, "'t' is listed twice")


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"not json", b"\xff\xfe\x00", b"{}" + b"\x00" * 6, b"[" * 200_000, b'{"t": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut off", "words", "not utf-8", "zeros after", "nested without end", "a number too long"],
)
def test_header_that_is_not_json_is_refused(tmp_path: Path, header: bytes) -> None:
    ran = hlwq("quantize", checkpoint(tmp_path / "m", header), tmp_path / "out")
    assert_refused(ran, 1, "model.safetensors")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 17])
def test_absurd_header_length_is_refused(tmp_path: Path, length: int) -> None:
    ran = hlwq("quantize", checkpoint(tmp_path / "m", {}, b"", length), tmp_path / "out")
    assert_refused(ran, 1, "model.safetensors is cut short or is not a safetensors file.")


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {}, None, 5, ["a"]], ids=json.dumps)
def test_metadata_of_the_source_is_never_trusted(tmp_path: Path, metadata: Any) -> None:
    matrix = {"dtype": "BF16", "shape": [64, 64], "data_offsets": [0, 8192]}
    header = {"__metadata__": metadata, "model.layers.0.self_attn.q_proj.weight": matrix}
    ran = hlwq("quantize", checkpoint(tmp_path / "m", header, bytes(8192)), tmp_path / "out")
    assert "Unexpected" not in ran.err
    assert ran.code in (0, 1)


def test_other_files_are_not_read_as_weights(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", {"t": A}, DATA[:16])
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "model.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert_refused(hlwq("quantize", folder, tmp_path / "out"), 1, "model.safetensors")
