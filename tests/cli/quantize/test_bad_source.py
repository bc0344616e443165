"""A missing, incomplete or inconsistent source: one message, the right exit code, and nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.run_command import CommandResult, assert_refused, hlwq
from tests.support.builders import LLAMA, dense, save_shards, save_tensors, tiny_llama
from tests.support.files import edit_json, read_json

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tensors = dense(2)
    names = sorted(tensors)
    shards = {ONE: {n: tensors[n] for n in names[:3]}, TWO: {n: tensors[n] for n in names[3:]}}
    return save_shards(tmp_path / "m", shards, LLAMA)


def edit_index(folder: Path, **files: str) -> None:
    weight_map = read_json(folder / INDEX)["weight_map"]
    edit_json(folder / INDEX, weight_map=weight_map | files)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., None]:
    """Return a check that quantize and its dry run refuse a source and create no output folder."""

    def check(source: Path | str, code: int, *says: str, options: tuple[str, ...] = ()) -> None:
        out = tmp_path / "out"
        runs: list[CommandResult] = [
            hlwq("quantize", source, out, *options),
            hlwq("quantize", source, "--dry-run", *options),
        ]
        for ran in runs:
            assert_refused(ran, code, *says)
        assert not out.exists()

    return check


Refused = Callable[..., None]


def test_missing_folder_is_refused(refused: Refused, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", 3, f"There is no folder {tmp_path / 'nowhere'}.")


def test_file_instead_of_a_folder_is_refused(refused: Refused, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m")
    refused(model / "model.safetensors", 3, "There is no folder")


def test_folder_without_config_is_refused(refused: Refused, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m")
    (model / "config.json").unlink()
    refused(model, 3, "There is no config.json in")


def test_folder_with_only_pickled_weights_is_refused(refused: Refused, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused(model, 1, "has no safetensors weights.", "pickled weights (.bin, .pt) are never read.")


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '"llama"', "null", "\x00\x01", "{'a': 1}"])
def test_config_that_is_not_a_json_object_is_refused(refused: Refused, tmp_path: Path, text: str) -> None:
    model = tiny_llama(tmp_path / "m")
    (model / "config.json").write_text(text)
    refused(model, 1, "config.json is not")


def test_config_that_is_not_utf8_is_refused(refused: Refused, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m")
    (model / "config.json").write_bytes(b'{"a": "\xff\xfe"}')
    refused(model, 1, "config.json is not valid JSON")


@pytest.mark.parametrize(
    "odd",
    [
        {"text_config": "big"}, {"quantization_config": "fp8"}, {"quantization_config": ["gptq"]},
        {"architectures": "LlamaForCausalLM"}, {"architectures": [5]}, {"architectures": {"a": 1}},
        {"model_type": 5}, {"model_type": ["llama"]}, {"tie_word_embeddings": "yes"}, {"_name_or_path": 7},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_config_with_values_of_odd_types_never_ends_in_an_unexpected_error(tmp_path: Path, odd: dict[str, Any]) -> None:
    ran = hlwq("quantize", save_tensors(tmp_path / "m", dense(), LLAMA | odd), tmp_path / "out")
    assert "Unexpected" not in ran.err
    assert ran.code in (0, 1)


def test_missing_shard_is_refused(refused: Refused, sharded: Path) -> None:
    (sharded / TWO).unlink()
    refused(sharded, 1, f"lacks {TWO}, which its index names.")


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1], ids=lambda n: f"first {n} bytes")
def test_truncated_shard_is_refused(refused: Refused, sharded: Path, keep: int) -> None:
    raw = (sharded / TWO).read_bytes()
    (sharded / TWO).write_bytes(raw[:keep])
    refused(sharded, 1, TWO)


@pytest.mark.parametrize(
    "file", ["../evil.safetensors", "/etc/passwd", "a/../b.safetensors", "a//b", "..", ".", "", "a\0", 5, None]
)
def test_index_that_points_outside_the_folder_is_refused(refused: Refused, sharded: Path, file: Any) -> None:
    weight_map = read_json(sharded / INDEX)["weight_map"]
    edit_json(sharded / INDEX, weight_map=weight_map | {Q: file})
    refused(sharded, 1, f"places {Q} in {file!r}, outside the folder.")


def test_missing_shard_in_a_subfolder_is_refused(refused: Refused, sharded: Path) -> None:
    edit_index(sharded, **{Q: "a/b.safetensors"})
    refused(sharded, 1, "lacks a/b.safetensors, which its index names.")


@pytest.mark.parametrize("document", ["{}", '{"weight_map": []}', '{"weight_map": "a"}', "[]", "{", ""])
def test_index_without_a_weight_map_is_refused(refused: Refused, sharded: Path, document: str) -> None:
    (sharded / INDEX).write_text(document)
    refused(sharded, 1, INDEX)


def test_index_with_an_absent_tensor_is_refused(refused: Refused, sharded: Path) -> None:
    edit_index(sharded, **{"model.ghost.weight": ONE})
    refused(sharded, 1, "Index and files disagree: model.ghost.weight")


def test_index_without_one_tensor_is_refused(refused: Refused, sharded: Path) -> None:
    weight_map = read_json(sharded / INDEX)["weight_map"]
    del weight_map[Q]
    edit_json(sharded / INDEX, weight_map=weight_map)
    refused(sharded, 1, f"Index and files disagree: {Q}")


def test_index_with_a_tensor_in_the_wrong_file_is_refused(refused: Refused, sharded: Path) -> None:
    there = read_json(sharded / INDEX)["weight_map"][Q]
    edit_index(sharded, **{Q: ONE if there == TWO else TWO})
    refused(sharded, 1, f"Index and files disagree: {Q}")


def test_tensor_in_two_files_is_refused(refused: Refused, tmp_path: Path) -> None:
    shards = {ONE: dense(1), TWO: {Q: torch.zeros(128, 128)}}
    refused(save_shards(tmp_path / "m", shards, LLAMA), 1, f"{Q} is in both {ONE} and {TWO}.")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_non_finite_weight_is_named_with_its_position(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    tensors = dense(2, dtype=dtype)
    tensors["model.layers.1.self_attn.q_proj.weight"][77, 5] = value
    ran = hlwq("quantize", save_tensors(tmp_path / "m", tensors, LLAMA), tmp_path / "out")
    assert_refused(ran, 1, "model.layers.1.self_attn.q_proj.weight", "[77, 5]")
    assert not (tmp_path / "out" / "hlwq_manifest.json").exists()
    assert not [*(tmp_path / "out").glob("*.safetensors")]


def test_position_of_a_non_finite_expert_weight_is_within_its_tensor(tmp_path: Path) -> None:
    config = {"model_type": "gemma4"}
    name = "model.language_model.layers.0.experts.gate_up_proj"
    experts = torch.randn(3, 64, 128)
    experts[2, 9, 100] = float("nan")
    ran = hlwq("quantize", save_tensors(tmp_path / "m", {name: experts}, config), tmp_path / "out")
    assert_refused(ran, 1, name, "[2, 9, 100]")


def test_kept_tensor_may_have_any_values(tmp_path: Path) -> None:
    tensors = dense() | {"model.norm.weight": torch.tensor([float("nan"), float("inf"), -0.0])}
    assert hlwq("quantize", save_tensors(tmp_path / "m", tensors, LLAMA), tmp_path / "out").code == 0


def test_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    ran = hlwq("quantize", save_tensors(tmp_path / "m", {}, LLAMA), tmp_path / "out")
    assert_refused(ran, 1, "no")
