"""Which files hold the model: what transformers would load; all other weights are copied or named, never merged."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hlwq_cli.checkpoint import open_source
from hlwq_cli.checkpoint.io.weight_files import sort_other_weights
from hlwq_cli.errors import CorruptError, UnsupportedError
from tests.support.builders import LLAMA, dense, save_shards, save_tensors
from tests.support.files import edit_json, read_json

INDEX = "model.safetensors.index.json"
Q = "model.layers.0.self_attn.q_proj.weight"
TIED = LLAMA | {"tie_word_embeddings": True}


def add(folder: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / name)


def first_values(folder: Path, name: str = Q) -> torch.Tensor:
    source = open_source(str(folder))
    try:
        return source.read(source.tensors[name])
    finally:
        source.close()


def test_single_file_wins_over_an_index(tmp_path: Path) -> None:
    stale = {
        f"model-0000{i}-of-00002.safetensors": {n: t + 1} for i, (n, t) in enumerate(sorted(dense().items())[:2], 1)
    }
    folder = save_shards(tmp_path / "m", stale, LLAMA)
    save_tensors(folder, dense(seed=7), LLAMA)
    source = open_source(str(folder))
    assert {t.file for t in source.tensors.values()} == {"model.safetensors"}
    assert torch.equal(first_values(folder), dense(seed=7)[Q])
    assert source.warnings == (
        "Left out, as transformers does not load them: model-00001-of-00002.safetensors and 1 like it (20.73 kB).",
    )


@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "model.fp16.safetensors"]
)
def test_second_copy_in_the_root_is_named_and_not_read(tmp_path: Path, name: str) -> None:
    folder = save_tensors(tmp_path / "m", dense(), LLAMA)
    add(folder, name, {"layers.0.attention.wq.weight": torch.zeros(4, 4), "norm.weight": torch.zeros(4)})
    source = open_source(str(folder))
    assert set(source.tensors) == set(dense())
    assert name not in source.sidecar_files
    (warning,) = source.warnings
    assert warning.startswith(f"Left out, as transformers does not load them: {name} (")


def test_file_that_the_config_names_is_read(tmp_path: Path) -> None:
    folder = save_tensors(tmp_path / "m", dense(seed=1), LLAMA | {"transformers_weights": "weights/a.safetensors"})
    add(folder, "weights/a.safetensors", dense(seed=2))
    assert torch.equal(first_values(folder), dense(seed=2)[Q])


def test_shards_in_subfolders_are_read(tmp_path: Path) -> None:
    names = sorted(dense())
    shards = {"a/one.safetensors": names[:2], "b/c/two.safetensors": names[2:]}
    for file in shards:
        (tmp_path / "m" / file).parent.mkdir(parents=True)
    folder = save_shards(tmp_path / "m", {f: {n: dense()[n] for n in part} for f, part in shards.items()}, LLAMA)
    source = open_source(str(folder))
    assert {n: t.file for n, t in source.tensors.items()} == {n: f for f, part in shards.items() for n in part}
    assert source.warnings == ()
    assert torch.equal(first_values(folder), dense()[Q])


def test_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    folder = save_tensors(tmp_path / "m", dense(), LLAMA)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(UnsupportedError, match=r"holds weights\.safetensors, but no model\.safetensors and no"):
        open_source(str(folder))


def tied_index(folder: Path, config: Mapping[str, Any], *extra: str) -> Path:
    tensors = dense()
    del tensors["lm_head.weight"]
    save_shards(folder, {"model-00001-of-00001.safetensors": tensors}, config)
    weight_map = read_json(folder / INDEX)["weight_map"]
    edit_json(folder / INDEX, weight_map=weight_map | dict.fromkeys(extra, "model-00001-of-00001.safetensors"))
    return folder


@pytest.mark.parametrize("config", [TIED, {"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}], ids=str)
def test_index_may_list_a_tied_head_that_no_file_holds(tmp_path: Path, config: dict[str, Any]) -> None:
    assert "lm_head.weight" not in open_source(str(tied_index(tmp_path / "m", config, "lm_head.weight"))).tensors


@pytest.mark.parametrize(("config", "name"), [(LLAMA, "lm_head.weight"), (TIED, "model.layers.1.up_proj.weight")])
def test_index_may_list_nothing_else_that_no_file_holds(tmp_path: Path, config: dict[str, Any], name: str) -> None:
    with pytest.raises(CorruptError, match=f"Index and files disagree: {name}"):
        open_source(str(tied_index(tmp_path / "m", config, name)))


def sorted_out(sizes: dict[str, int], modules: tuple[str, ...] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = sort_other_weights({"model.safetensors": 1100, **sizes}, ["model.safetensors"], 1000, modules)
    return found.copied, found.warnings


@pytest.mark.parametrize(
    "sizes",
    [
        {"2_Dense/model.safetensors": 499},
        {"head.safetensors": 499},
        {"vision-lora/adapter_model.safetensors": 5000, "vision-lora/adapter_config.json": 3},
        {"adapter_model.safetensors": 5000, "adapter_config.json": 3},
        {"a/b/x-00001-of-00002.safetensors": 200, "a/b/x-00002-of-00002.safetensors": 200},
        {"a/x.safetensors": 200, "a/x.safetensors.index.json": 9},
    ],
    ids=str,
)
def test_small_modules_and_adapters_are_copied(sizes: dict[str, int]) -> None:
    assert sorted_out(sizes) == (tuple(sorted(n for n in sizes if ".safetensors" in n)), ())


def test_module_of_sentence_transformers_is_copied_whatever_its_size() -> None:
    assert sorted_out({"2_Dense/model.safetensors": 9000}, ("2_Dense",)) == (("2_Dense/model.safetensors",), ())


@pytest.mark.parametrize(
    "name",
    [
        "original/x.safetensors", "checkpoint-500/model.safetensors", "onnx/model.onnx", "onnx/model.onnx_data",
        "model-q4.gguf", "pytorch_model.bin", "tf_model.h5", "sub/consolidated.safetensors", "fp16/x.safetensors",
        "model-int8/x.safetensors", "a/optimizer.pt",
    ],
)  # fmt: skip
def test_copies_and_pickles_are_named_however_small(name: str) -> None:
    assert sorted_out({name: 5}) == ((), (f"Left out, as transformers does not load them: {name} (5 B).",))


def test_large_copy_in_a_folder_is_named_with_its_files() -> None:
    sizes = {f"second/{i}.safetensors": 400 for i in range(3)}
    expected = "Left out, as transformers does not load them: second/ (3 files, 1.20 kB)."
    assert sorted_out(sizes) == ((), (expected,))


def test_long_lists_are_cut_and_the_largest_come_first() -> None:
    (warning,) = sorted_out({f"{c}.gguf": i for i, c in enumerate("abcdefgh")})[1]
    names = "h.gguf (7 B), g.gguf (6 B), f.gguf (5 B), e.gguf (4 B), d.gguf (3 B), 3 more (3 B)"
    assert warning == f"Left out, as transformers does not load them: {names}."


def test_pickled_module_is_named_in_a_sentence_of_its_own() -> None:
    copied, warnings = sorted_out({"2_Dense/pytorch_model.bin": 5, "pytorch_model.bin": 7}, ("2_Dense",))
    assert copied == ()
    assert warnings == (
        "Left out, as transformers does not load them: pytorch_model.bin (7 B).",
        "Left out, although modules.json lists them, as pickled weights are never copied: "
        "2_Dense/pytorch_model.bin (5 B).",
    )
