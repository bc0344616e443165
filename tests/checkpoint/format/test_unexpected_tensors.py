"""Tensors that checkpoints hold and model classes do not expect: tied heads stored twice, MTP, odd types and shapes."""

from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint import Manifest, export, load_recipe, open_coded, quantize
from tests.support.builders import LLAMA, dense, save_shards, save_tensors
from tests.support.files import opens_with_safetensors, read_tensors, relative_error

TIED = LLAMA | {"tie_word_embeddings": True}


def run(source: Path, out: Path, bits: int = 5) -> Manifest:
    return quantize(str(source), out, load_recipe(bits=bits)).manifest


def test_tied_head_stored_twice_is_written_once(tmp_path: Path) -> None:
    tensors = dense()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    manifest = run(save_tensors(tmp_path / "m", tensors, TIED), tmp_path / "out")
    assert "lm_head.weight" not in read_tensors(tmp_path / "out")
    assert [d["name"] for d in manifest.dropped] == ["lm_head.weight"]


def test_tied_head_in_another_file_than_its_embeddings_is_written_once(tmp_path: Path) -> None:
    tensors = dense()
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    del tensors["lm_head.weight"]
    shards = {"model-00001-of-00002.safetensors": tensors, "model-00002-of-00002.safetensors": head}
    run(save_shards(tmp_path / "m", shards, TIED), tmp_path / "out")
    assert "lm_head.weight" not in read_tensors(tmp_path / "out")


def test_head_that_differs_from_the_embeddings_is_kept_whatever_the_config_says(tmp_path: Path) -> None:
    source = save_tensors(tmp_path / "m", dense(), TIED)
    run(source, tmp_path / "out")
    assert read_tensors(tmp_path / "out")["lm_head.weight"] == read_tensors(source)["lm_head.weight"]


def test_tensors_that_no_class_knows_are_kept_under_their_names(tmp_path: Path) -> None:
    extra = {
        "mtp.layers.0.eh_proj.weight": torch.randn(128, 256).bfloat16(),
        "mtp.norm.weight": torch.randn(128).bfloat16(),
        "model.layers.61.mtp_head.bias": torch.randn(7),
        "steps": torch.tensor(12345),
    }
    source = save_tensors(tmp_path / "m", dense() | extra, LLAMA)
    run(source, tmp_path / "out")
    export(tmp_path / "out", tmp_path / "plain")
    for folder in (tmp_path / "out", tmp_path / "plain"):
        assert {n: read_tensors(folder)[n] for n in extra} == {n: read_tensors(source)[n] for n in extra}


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
        torch.uint16, torch.uint32, torch.uint64, torch.complex64,
    ],
    ids=str,
)  # fmt: skip
def test_buffer_of_any_type_is_kept_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    buffer = torch.randint(0, 256, (3, 8), dtype=torch.uint8)
    buffer = (buffer % 2).bool() if dtype == torch.bool else buffer.view(dtype)
    source = save_tensors(tmp_path / "m", dense() | {"model.buffer": buffer}, LLAMA)
    run(source, tmp_path / "out")
    assert read_tensors(tmp_path / "out")["model.buffer"] == read_tensors(source)["model.buffer"]
    assert opens_with_safetensors(tmp_path / "out")


@pytest.mark.parametrize("shape", [(), (0,), (0, 64), (1,), (3, 1, 2)], ids=str)
def test_scalars_and_empty_tensors_are_kept(tmp_path: Path, shape: tuple[int, ...]) -> None:
    source = save_tensors(tmp_path / "m", dense() | {"model.odd": torch.full(shape, 1.5)}, LLAMA)
    run(source, tmp_path / "out")
    export(tmp_path / "out", tmp_path / "plain")
    assert read_tensors(tmp_path / "out")["model.odd"].shape == shape
    assert read_tensors(tmp_path / "plain")["model.odd"] == read_tensors(source)["model.odd"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_linear_weights_of_each_float_type_are_coded(tmp_path: Path, dtype: torch.dtype) -> None:
    source = save_tensors(tmp_path / "m", dense(dtype=dtype), LLAMA)
    manifest = run(source, tmp_path / "out", bits=8)
    (record,) = manifest.coded
    checkpoint = open_coded(tmp_path / "out")
    true = read_tensors(source)["model.layers.0.self_attn.q_proj.weight"].values
    assert relative_error(checkpoint.decode_rows(record, 0, 128), true) < 3.2e-5


def test_zero_matrix_decodes_to_zero(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    manifest = run(save_tensors(tmp_path / "m", dense() | {name: torch.zeros(128, 128)}, LLAMA), tmp_path / "out")
    export(tmp_path / "out", tmp_path / "plain", "f32")
    assert not read_tensors(tmp_path / "plain")[name].values.any()
    assert manifest.coded[0].nmse == 0


def test_matrix_that_would_not_get_smaller_is_kept(tmp_path: Path) -> None:
    narrow = {"model.layers.0.self_attn.k_proj.weight": torch.randn(16, 10).bfloat16()}
    manifest = run(save_tensors(tmp_path / "m", dense() | narrow, LLAMA), tmp_path / "out")
    reasons = {k.name: k.reason for k in manifest.kept}
    assert reasons["model.layers.0.self_attn.k_proj.weight"] == "would not get smaller"


def test_names_with_spaces_quotes_and_letters_of_the_world_survive(tmp_path: Path) -> None:
    odd = {'model.„Gewicht" é 重み \\ .bias': torch.randn(5)}
    source = save_tensors(tmp_path / "m", dense() | odd, LLAMA)
    run(source, tmp_path / "out")
    export(tmp_path / "out", tmp_path / "plain")
    assert set(read_tensors(tmp_path / "plain")) == set(read_tensors(source))
