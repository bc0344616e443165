"""`inspect --verify` finds a single wrong byte, a missing file and invalid scales, and names the place.

A shard has no hash of its own until it is pushed; `state` adds the hash as a push does.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.checkpoint import load_recipe, open_coded, quantize, verify
from hlwq_cli.checkpoint.format import bytes_to_verify, read_manifest, with_all_hashes
from hlwq_cli.errors import CorruptError
from hlwq_cli.progress import Progress
from tests.cli.run_command import CommandResult, hlwq
from tests.support.builders import LLAMA, SIDECAR_FILES, dense, save_tensors
from tests.support.files import edit_header, read_json

MANIFEST, INDEX = "hlwq_manifest.json", "model.safetensors.index.json"
Q = "model.layers.0.self_attn.q_proj"


def problems(ran: CommandResult) -> list[str]:
    assert ran.code == 6, ran
    found: list[str] = json.loads(ran.out)["problems"]
    assert f"Error: {len(found)} problem{'s' * (len(found) > 1)}: " in ran.err
    return found


def place(folder: Path, tensor: str) -> tuple[Path, int]:
    """Return the file of a tensor, and the offset of its first byte."""
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


def state(folder: Path) -> None:
    """Write the current hash of every shard into the manifest."""
    (folder / MANIFEST).write_bytes(with_all_hashes(folder, read_manifest(folder)).dump())


@pytest.mark.parametrize("stated", [False, True])
def test_whole_result_is_verified(folder: Path, stated: bool) -> None:
    if stated:
        state(folder)
    ran = hlwq("inspect", folder, "--verify", "--json")
    assert ran.code == 0
    report = json.loads(ran.out)
    assert report["problems"] == []
    files = read_json(folder / MANIFEST)["files"]
    assert (report["files"], report["bytes"]) == (len(files), sum(f["size"] for f in files))


@pytest.mark.parametrize("stated", [False, True])
def test_progress_ends_with_all_bytes(folder: Path, stated: bool) -> None:
    if stated:
        state(folder)
    checkpoint, events = open_coded(folder), list[Progress]()
    assert verify(checkpoint, events.append).problems == ()
    checkpoint.close()
    total = bytes_to_verify(checkpoint.manifest)
    assert (events[-1].done, {e.total for e in events}) == (total, {total})


@pytest.mark.parametrize("tensor", [f"{Q}.codes", f"{Q}.scales", f"{Q}.base", "model.norm.weight"])
def test_one_flipped_bit_is_found_and_its_file_named(folder: Path, tensor: str) -> None:
    path, at = place(folder, tensor)
    overwrite(path, at, bytes([path.read_bytes()[at] ^ 1]))
    (problem,) = problems(hlwq("inspect", folder, "--verify", "--json"))
    name = tensor if tensor.startswith("model.norm") else Q
    assert problem == f"{name} in {path.name} does not match the manifest"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of one shard, small enough to change each of its bytes in turn."""
    folder = tmp_path_factory.mktemp("tiny")
    tensors = dense(1, 64) | {"model.norm.weight": torch.ones(8), "a.scalar": torch.tensor(1.5)}
    quantize(str(save_tensors(folder / "m", tensors, LLAMA)), folder / "out", load_recipe(bits=2))
    return folder / "out"


def goes_unnoticed(folder: Path) -> bool:
    """Return whether a checkpoint can be opened and verified."""
    try:
        checkpoint = open_coded(folder)
    except CorruptError:
        return False
    try:
        return not verify(checkpoint).problems
    finally:
        checkpoint.close()


def test_no_byte_of_a_shard_without_a_hash_can_change_unnoticed(tiny: Path) -> None:
    path = tiny / "model.safetensors"
    raw = path.read_bytes()
    end_of_header = 8 + int.from_bytes(raw[:8], "little")
    assert goes_unnoticed(tiny)
    places = [*range(end_of_header), *range(end_of_header, len(raw), 97), len(raw) - 1]
    unnoticed = []
    for at in places:
        overwrite(path, at, bytes([raw[at] ^ 1 << at % 8]))
        if goes_unnoticed(tiny):
            unnoticed.append(at)
        overwrite(path, at, raw[at : at + 1])
    assert unnoticed == []
    assert goes_unnoticed(tiny)


def other_metadata(header: dict[str, Any]) -> None:
    header["__metadata__"]["format"] = "np"


def metadata_last(header: dict[str, Any]) -> None:
    header["__metadata__"] = header.pop("__metadata__")


def tensors_listed_backwards(header: dict[str, Any]) -> None:
    for name in reversed([*header]):
        header[name] = header.pop(name)


def keys_in_another_order(header: dict[str, Any]) -> None:
    header[f"{Q}.codes"]["dtype"] = header[f"{Q}.codes"].pop("dtype")


@pytest.mark.parametrize("edit", [other_metadata, metadata_last, tensors_listed_backwards, keys_in_another_order])
@pytest.mark.parametrize("stated", [False, True])
def test_changed_header_of_the_same_tensors_is_found(
    folder: Path, edit: Callable[[dict[str, Any]], None], stated: bool
) -> None:
    if stated:
        state(folder)
    path, _ = place(folder, f"{Q}.codes")
    edit_header(path, edit)
    what = "sha256" if stated else "header"
    (problem,) = problems(hlwq("inspect", folder, "--verify", "--json"))
    assert problem == f"{path.name} does not match the manifest: its {what} differs"


def test_padding_of_a_header_is_spaces(tiny: Path, copied: Callable[[Path], Path]) -> None:
    path = copied(tiny) / "model.safetensors"
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    assert raw[end - 1 : end] == b" "
    overwrite(path, end - 1, b"\n")
    (problem,) = problems(hlwq("inspect", path.parent, "--verify", "--json"))
    assert problem == "model.safetensors does not match the manifest: its header differs"


@pytest.mark.parametrize("name", ["config.json", INDEX, "README.md", *SIDECAR_FILES])
def test_changed_small_file_is_found(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    (problem,) = problems(hlwq("inspect", folder, "--verify", "--json"))
    assert name in problem


def test_missing_sidecar_file_is_found(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert problems(hlwq("inspect", folder, "--verify", "--json")) == ["tokenizer.json is missing"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1.0])
def test_invalid_base_is_found_even_if_hashes_match(folder: Path, value: float) -> None:
    path, at = place(folder, f"{Q}.base")
    overwrite(path, at + 2 * 5, torch.tensor([value], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
    state(folder)
    found = problems(hlwq("inspect", folder, "--verify", "--json"))
    assert f"{Q}.base has 1 values that are negative, infinite or NaN" in found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_invalid_fp16_scale_is_found(family: Callable[[str], Path], tmp_path: Path, value: float) -> None:
    out = tmp_path / "out"
    quantize(str(family("qwen3")), out, load_recipe("classic"))
    path, at = place(out, f"{Q}.scales")
    overwrite(path, at, torch.tensor([value, value], dtype=torch.float16).view(torch.uint8).numpy().tobytes())
    state(out)
    found = problems(hlwq("inspect", out, "--verify", "--json"))
    assert f"{Q}.scales has 2 values that are negative, infinite or NaN" in found


def test_wrong_tensor_hash_is_found_though_the_file_hash_is_right(folder: Path) -> None:
    path, at = place(folder, f"{Q}.codes")
    overwrite(path, at, bytes([path.read_bytes()[at] ^ 1]))
    state(folder)
    assert any(f"{Q}" in p for p in problems(hlwq("inspect", folder, "--verify", "--json")))


def test_human_verdict_lists_every_problem(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "LICENSE").write_text("other")
    ran = hlwq("inspect", folder, "--verify")
    assert ran.code == 6
    assert "- tokenizer.json is missing\n" in ran.out
    assert "- LICENSE does not match the manifest" in ran.out
    assert ran.out.endswith(" 2 problems.\n")
