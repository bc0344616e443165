"""Inconsistent and hostile HLWQ folders are refused with a message that names the tensor or file."""

import json
import math
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import tiny_llama
from tests.support.files import edit_header, edit_json, read_json, read_tensors, tree, write_header

CONFIG, MANIFEST, INDEX = "config.json", "hlwq_manifest.json", "model.safetensors.index.json"
Q = "model.layers.0.self_attn.q_proj"
Copied = Callable[[Path], Path]


@pytest.fixture
def folder(coded: Copied, copied: Copied) -> Path:
    """A complete result in several files, for tests that damage it."""
    return copied(coded("qwen3"))


def edit_settings(folder: Path, **changes: Any) -> None:
    edit_json(folder / CONFIG, quantization_config=read_json(folder / CONFIG)["quantization_config"] | changes)


def file_of(folder: Path, tensor: str) -> Path:
    return folder / str(read_json(folder / INDEX)["weight_map"][tensor])


def refused(folder: Path, code: int, *says: str) -> None:
    """Check that inspect, inspect --verify and export refuse, and that export writes nothing."""
    plain = folder.parent / "plain"
    for ran in (hlwq("inspect", folder), hlwq("inspect", folder, "--verify"), hlwq("export", folder, plain)):
        assert_refused(ran, code, *says)
    assert not plain.exists()


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", 3, f"There is no folder {tmp_path / 'nowhere'}.")


def test_ordinary_checkpoint_is_refused(family: Copied, copied: Copied) -> None:
    refused(copied(family("qwen3")), 3, "is not an HLWQ checkpoint: it has no hlwq_manifest.json.")


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
@pytest.mark.parametrize("where", [CONFIG, MANIFEST])
def test_unknown_format_version_is_refused(folder: Path, version: Any, where: str) -> None:
    if where == CONFIG:
        edit_settings(folder, format_version=version)
    else:
        edit_json(folder / MANIFEST, format_version=version)
    refused(folder, 1, f"format version {version}, not 1.", "Update hlwq.")


def test_config_without_the_method_is_refused(folder: Path) -> None:
    edit_settings(folder, quant_method="gptq")
    refused(folder, 1, "does not say quant_method hlwq.")


BOOK = [-1.0 + i / 16 for i in range(32)]


@pytest.mark.parametrize(
    "book",
    [
        BOOK[:-1], [*BOOK, 2.0], BOOK[::-1], [BOOK[0], *BOOK[:-1]], [*BOOK[:-1], float("nan")],
        [*BOOK[:-1], float("inf")], [], [str(c) for c in BOOK], [None] * 32, 5, None, "abc",
    ],
    ids=["short", "long", "descending", "twice the same", "nan", "inf", "empty", "words", "nulls", "5", "null", "abc"],
)  # fmt: skip
def test_invalid_codebook_is_refused(folder: Path, book: Any) -> None:
    edit_settings(folder, codebooks={"5": book})
    refused(folder, 1, "5-bit codebook in config.json is not 32 ascending numbers.")


@pytest.mark.parametrize("books", [{}, {"4": BOOK[:16]}, {"five": BOOK}, {"99": []}, {"-1": []}, [BOOK], None, "5"])
def test_codebooks_without_a_used_width_are_refused(folder: Path, books: Any) -> None:
    edit_settings(folder, codebooks=books)
    refused(folder, 1, "codebook")


@pytest.mark.parametrize("change", [{"block_size": 128}, {"block_size": 32}, {"scale": "fp16"}])
def test_settings_that_disagree_with_the_shapes_name_the_tensor(folder: Path, change: dict[str, Any]) -> None:
    edit_settings(folder, **change)
    ran = hlwq("inspect", folder)
    assert_refused(ran, 1, "model.layers.")


@pytest.mark.parametrize("change", [{"block_size": 48}, {"block_size": "64"}, {"block_size": None}, {"scale": "e8"}])
def test_unknown_settings_are_refused(folder: Path, change: dict[str, Any]) -> None:
    edit_settings(folder, **change)
    refused(folder, 1, "config.json")


def test_missing_shard_is_named(folder: Path) -> None:
    path = file_of(folder, f"{Q}.codes")
    path.unlink()
    refused(folder, 1, f"lacks {path.name}.")


@pytest.mark.parametrize("change", [-1, 1])
def test_shard_of_another_size_is_named(folder: Path, change: int) -> None:
    path = file_of(folder, f"{Q}.codes")
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] if change < 0 else raw + b"\0")
    refused(folder, 1, f"{path.name} does not have the size in the manifest")


def test_coded_tensor_of_another_shape_is_named(folder: Path) -> None:
    def flip(header: dict[str, Any]) -> None:
        rows, columns = header[f"{Q}.codes"]["shape"]
        header[f"{Q}.codes"]["shape"] = [columns, rows]

    edit_header(file_of(folder, f"{Q}.codes"), flip)
    refused(folder, 1, f"{Q}.codes is [80, 128] U8, not [128, 80] U8.")


def test_kept_tensor_of_another_type_is_named(folder: Path) -> None:
    def retype(header: dict[str, Any]) -> None:
        header["model.norm.weight"]["dtype"] = "F16"

    edit_header(file_of(folder, "model.norm.weight"), retype)
    refused(folder, 1, "model.norm.weight")


def test_kept_tensor_of_another_shape_is_named(folder: Path) -> None:
    def reshape(header: dict[str, Any]) -> None:
        header["model.norm.weight"]["shape"] = [2, 64]

    edit_header(file_of(folder, "model.norm.weight"), reshape)
    refused(folder, 1, "model.norm.weight")


def test_renamed_tensor_is_named(folder: Path) -> None:
    def rename(header: dict[str, Any]) -> None:
        header["model.norn.weight"] = header.pop("model.norm.weight")

    edit_header(file_of(folder, "model.norm.weight"), rename)
    refused(folder, 1, "model.nor")


def test_index_that_disagrees_names_the_tensor(folder: Path) -> None:
    weight_map = read_json(folder / INDEX)["weight_map"]
    del weight_map["model.norm.weight"]
    edit_json(folder / INDEX, weight_map=weight_map)
    refused(folder, 1, "Index and files disagree: model.norm.weight")


def test_index_that_points_outside_the_folder_is_refused(folder: Path) -> None:
    weight_map = read_json(folder / INDEX)["weight_map"]
    edit_json(folder / INDEX, weight_map=weight_map | {"model.norm.weight": "../x.safetensors"})
    refused(folder, 1, "model.norm.weight", "outside the folder.")


@pytest.mark.parametrize("suffix", [".txt", ".safetensors"])
@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_manifest_that_names_a_file_outside_the_folder_is_refused(folder: Path, suffix: str, absolute: bool) -> None:
    outside = folder.parent / f"victim{suffix}"
    outside.write_text("precious")
    name = str(outside) if absolute else f"../victim{suffix}"
    files = [*read_json(folder / MANIFEST)["files"], {"name": name, "size": 8, "sha256": "0" * 64}]
    edit_json(folder / MANIFEST, files=files)
    refused(folder, 1, name)
    assert outside.read_text() == "precious"


@pytest.mark.parametrize("name", [CONFIG, INDEX, "README.md", "tokenizer.json"])
def test_only_a_shard_may_have_no_hash(folder: Path, name: str) -> None:
    files = [f | ({"sha256": None} if f["name"] == name else {}) for f in read_json(folder / MANIFEST)["files"]]
    edit_json(folder / MANIFEST, files=files)
    refused(folder, 1, f"sha256 of {name} is None")


def test_export_never_writes_outside_its_folder(folder: Path, tmp_path: Path) -> None:
    (folder.parent / "payload.txt").write_text("evil")
    name = "../payload.txt"
    files = [*read_json(folder / MANIFEST)["files"], {"name": name, "size": 4, "sha256": "0" * 64}]
    edit_json(folder / MANIFEST, files=files)
    (tmp_path / "deep").mkdir()
    hlwq("export", folder, tmp_path / "deep" / "plain")
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) in ([], ["plain"])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", "[" * 100_000, "{}", '{"format_version": 1}'])
def test_invalid_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    refused(folder, 1, MANIFEST)


HOSTILE: list[Any] = [None, -1, 0, 2**70, 1.5, "x", [], {}, [[]], True, float("nan"), "\0", ["a"], [-1, 2], [2**40] * 3]


RECORD_FIELDS = [
    *(("coded", f) for f in ("name", "role", "shape", "bits", "bytes", "blake3", "nmse", "sources")),
    *(("kept", f) for f in ("name", "role", "dtype", "shape", "bytes", "blake3", "reason")),
    *(("files", f) for f in ("name", "size", "sha256")),
]
FIELDS = ["tool", "source", "rule", "source_bytes", "files", "coded", "kept", "dropped", "fingerprint"]


def not_json(word: str) -> None:
    raise AssertionError(f"{word} is not valid JSON")


def looks_without_surprise(folder: Path, what: object) -> None:
    """Check that inspect, inspect --verify and export each succeed or refuse with a message."""
    plain = folder.parent / "plain"
    for arguments in (["inspect", folder, "--json"], ["inspect", folder, "--verify"], ["export", folder, plain]):
        ran = hlwq(*arguments)
        assert "Unexpected" not in ran.err, (what, arguments[0], ran.err)
        assert ran.code in (0, 1, 6), (what, arguments[0])
        if ran.code == 0 and "--json" in arguments:
            json.loads(ran.out, parse_constant=not_json)
    shutil.rmtree(plain, ignore_errors=True)


@pytest.mark.parametrize(("kind", "field"), RECORD_FIELDS)
def test_no_value_in_a_record_ends_in_an_unexpected_error(folder: Path, kind: str, field: str) -> None:
    manifest = read_json(folder / MANIFEST)
    for value in HOSTILE:
        first, *others = manifest[kind]
        edit_json(folder / MANIFEST, **{kind: [first | {field: value}, *others]})
        looks_without_surprise(folder, value)


@pytest.mark.parametrize("field", FIELDS)
def test_no_value_in_the_manifest_ends_in_an_unexpected_error(folder: Path, field: str) -> None:
    for value in HOSTILE:
        edit_json(folder / MANIFEST, **{field: value})
        looks_without_surprise(folder, value)


def test_reading_changes_no_file(folder: Path) -> None:
    before = tree(folder)
    for options in ([], ["--verify"], ["--diff", str(folder)], ["--json"]):
        hlwq("inspect", folder, *options)
    assert tree(folder) == before
    assert read_tensors(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sources", [f"{Q.replace('q_proj', 'k_proj')}.weight"]), ("role", "mlp"), ("source_shapes", [[64, 256]])],
)
def test_manifest_that_makes_a_tensor_of_another_source_is_refused(folder: Path, field: str, value: Any) -> None:
    manifest = read_json(folder / MANIFEST)
    for record in manifest["coded"]:
        if record["name"] == Q:
            record[field] = value
    edit_json(folder / MANIFEST, coded=manifest["coded"])
    refused(folder, 1, "its tensors are not those of its fingerprint")


@pytest.mark.parametrize("number", [10**400, -(10**400), 1e308, -1e308])
def test_number_beyond_any_float_is_refused(folder: Path, number: float) -> None:
    edit_settings(folder, codebooks={"5": [*BOOK[:-1], number]})
    refused(folder, 1, "codebook in config.json is not 32 ascending numbers.")
    edit_settings(folder, codebooks={"5": BOOK})
    first, *others = read_json(folder / MANIFEST)["coded"]
    edit_json(folder / MANIFEST, coded=[first | {"nmse": -abs(number)}, *others])
    refused(folder, 1, "nmse of")


def test_memory_of_verify_does_not_grow_with_a_tensor(tmp_path: Path) -> None:
    """A sparse result of one matrix: 40 million rows of 64 weights, 1.2 GB of zeros that take no disk."""
    rows = 40_000_000
    out = tmp_path / "out"
    assert hlwq("quantize", tiny_llama(tmp_path / "m"), out, "--bits", "2").code == 0
    manifest = read_json(out / MANIFEST)
    record = manifest["coded"][0]
    parts = {"codes": ("U8", [rows, 16]), "scales": ("U8", [rows, 1]), "base": ("BF16", [rows])}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "format_version": "1"}}
    at = 0
    for part, (dtype, shape) in parts.items():
        size = math.prod(shape) * (2 if dtype == "BF16" else 1)
        header[f"{record['name']}.{part}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    shard = write_header(out / "model.safetensors", header)
    os.truncate(shard, shard.stat().st_size + at)
    files = [f | ({"size": shard.stat().st_size} if f["sha256"] is None else {}) for f in manifest["files"]]
    del manifest["fingerprint"]["tensors"]
    coded = [record | {"shape": [rows, 64], "bytes": at}]
    edit_json(out / MANIFEST, coded=coded, kept=[], files=files, fingerprint=manifest["fingerprint"])
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 600_000_000
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        ran = hlwq("inspect", out, "--verify")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert ran.code == 6, ran.err
    assert "does not match the manifest" in ran.err
