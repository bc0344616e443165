"""`inspect --verify` finds a single wrong byte, a missing file and scales that are no numbers, and says where."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint import load_recipe, quantize
from tests.builders import COMPANIONS
from tests.cli.run import Ran, hlwq
from tests.files import edit_json, read_json

MANIFEST, INDEX = "hlwq_manifest.json", "model.safetensors.index.json"
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(coded: Callable[[str], Path], copied: Callable[[Path], Path]) -> Path:
    return copied(coded("qwen3"))


def problems(ran: Ran) -> list[str]:
    assert ran.code == 6, ran
    found: list[str] = json.loads(ran.out)["problems"]
    assert f"Error: {len(found)} problem" in ran.err
    return found


def place(folder: Path, tensor: str) -> tuple[Path, int]:
    """The file that holds a tensor, and the position of its first byte."""
    index = folder / INDEX
    path = folder / (read_json(index)["weight_map"][tensor] if index.exists() else "model.safetensors")
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    begin, _ = json.loads(raw[8 : 8 + length])[tensor]["data_offsets"]
    return path, 8 + length + int(begin)


def overwrite(path: Path, at: int, data: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[at : at + len(data)] = data
    path.write_bytes(raw)


def bless(folder: Path, path: Path) -> None:
    """Put a changed file's hash into the manifest, as a writer would that made the file so."""
    records = read_json(folder / MANIFEST)["files"]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(folder / MANIFEST, files=[r | {"sha256": sha256} if r["name"] == path.name else r for r in records])


def test_whole_result_is_verified(folder: Path) -> None:
    ran = hlwq("inspect", folder, "--verify", "--json")
    assert ran.code == 0
    report = json.loads(ran.out)
    assert report["problems"] == []
    assert report["files"] == len(read_json(folder / MANIFEST)["files"])


@pytest.mark.parametrize("tensor", [f"{Q}.codes", f"{Q}.scales", f"{Q}.base", "model.norm.weight"])
def test_one_flipped_bit_is_found_and_its_file_named(folder: Path, tensor: str) -> None:
    path, at = place(folder, tensor)
    overwrite(path, at, bytes([path.read_bytes()[at] ^ 1]))
    found = problems(hlwq("inspect", folder, "--verify", "--json"))
    assert [p for p in found if p.startswith(f"{path.name} is not what the manifest states")]


@pytest.mark.parametrize("name", ["config.json", INDEX, "README.md", *COMPANIONS])
def test_changed_small_file_is_found(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    (problem,) = problems(hlwq("inspect", folder, "--verify", "--json"))
    assert name in problem


def test_missing_companion_is_found(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert problems(hlwq("inspect", folder, "--verify", "--json")) == ["tokenizer.json is missing"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1.0])
def test_base_that_no_writer_makes_is_found_whatever_the_hashes_say(folder: Path, value: float) -> None:
    path, at = place(folder, f"{Q}.base")
    overwrite(path, at + 2 * 5, torch.tensor([value], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
    bless(folder, path)
    found = problems(hlwq("inspect", folder, "--verify", "--json"))
    assert f"{Q}.base has 1 values that are negative, infinite or NaN" in found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_fp16_scale_that_no_writer_makes_is_found(family: Callable[[str], Path], tmp_path: Path, value: float) -> None:
    out = tmp_path / "out"
    quantize(str(family("qwen3")), out, load_recipe("classic"))
    path, at = place(out, f"{Q}.scales")
    overwrite(path, at, torch.tensor([value, value], dtype=torch.float16).view(torch.uint8).numpy().tobytes())
    bless(out, path)
    found = problems(hlwq("inspect", out, "--verify", "--json"))
    assert f"{Q}.scales has 2 values that are negative, infinite or NaN" in found


def test_tensor_whose_hash_differs_is_found_though_its_file_was_blessed(folder: Path) -> None:
    path, at = place(folder, f"{Q}.codes")
    overwrite(path, at, bytes([path.read_bytes()[at] ^ 1]))
    bless(folder, path)
    assert any(f"{Q}" in p for p in problems(hlwq("inspect", folder, "--verify", "--json")))


def test_human_verdict_lists_every_problem(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "LICENSE").write_text("other")
    ran = hlwq("inspect", folder, "--verify")
    assert ran.code == 6
    assert "- tokenizer.json is missing\n" in ran.out
    assert "- LICENSE is not what the manifest states" in ran.out
    assert ran.out.endswith(" 2 problems.\n")
