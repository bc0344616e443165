"""Plans of hostile sources: names that collide, and settings that would take all time or memory, are refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.checkpoint import load_recipe, make_plan, open_source
from hlwq_cli.checkpoint.io import MAX_ROW_WEIGHTS
from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import LLAMA, dense, save_tensors
from tests.support.files import write_header

Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("name", [f"{Q}.base", f"{Q}.scales", Q])
def test_names_that_collide_in_the_result_are_refused(tmp_path: Path, name: str) -> None:
    model = save_tensors(tmp_path / "m", dense() | {name: torch.zeros(128, 128)}, LLAMA)
    for options in ([tmp_path / "out"], ["--dry-run"]):
        assert_refused(hlwq("quantize", model, *options), 1, f"Two tensors of the result would be called {name}.")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 10**8},
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 10**8},
        {"model_type": "gemma3", "architectures": ["X"], "text_config": {"num_hidden_layers": 10**8}},
        {"model_type": "swin", "architectures": ["SwinModel"], "depths": [2, 10**8]},
        {"model_type": "t5", "architectures": ["T5Model"], "num_layers": 10**8, "num_decoder_layers": 2},
    ],
    ids=lambda c: c["model_type"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["quantize", "bench"])
def test_config_of_too_many_layers_is_refused_at_once(tmp_path: Path, config: dict[str, Any], command: str) -> None:
    model = save_tensors(tmp_path / "m", dense(), config)
    began = time.process_time()
    ran = hlwq(command, model, *(["--dry-run"] if command == "quantize" else ["--ppl", "--data", "sample"]))
    assert ran.code == 1
    assert "100,000,000, more than 10,000." in ran.err
    assert time.process_time() - began < 20, "most of it are imports"


def test_model_of_far_more_modules_than_tensors_is_not_built(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 9_999, "n_embd": 64, "n_head": 1}
    model = save_tensors(tmp_path / "m", dense(), config)
    assert_refused(hlwq("quantize", model, "--dry-run"), 1, "far more parts than the 4 tensors fill.")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("command", ["quantize", "bench"])
def test_config_that_names_a_kernel_of_the_hub_is_refused(tmp_path: Path, key: str, command: str) -> None:
    model = save_tensors(tmp_path / "m", dense(), {"model_type": "llama", "text_config": {key: "someone/kernel"}})
    ran = hlwq(command, model, *(["--dry-run"] if command == "quantize" else ["--ppl", "--data", "sample"]))
    assert ran.code == 1
    assert "hlwq never runs a checkpoint's own code." in ran.err


def test_config_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    config: dict[str, Any] = dict(LLAMA)
    for _ in range(500):
        config = {"model_type": "llama", "text_config": config}
    assert_refused(hlwq("quantize", save_tensors(tmp_path / "m", dense(), config), "--dry-run"), 1, "nested too deep.")


@pytest.mark.parametrize("number", [300_000, 300_000_000, 10**30])
@pytest.mark.parametrize("architectures", [[], ["Qwen3MoeForCausalLM"]], ids=["by names", "by class"])
def test_expert_of_a_huge_number_takes_no_memory(tmp_path: Path, number: int, architectures: list[str]) -> None:
    name = f"model.layers.0.mlp.experts.{number}.gate_proj.weight"
    tensors = dense() | {name: torch.zeros(64, 64, dtype=torch.bfloat16)}
    config = {"model_type": "qwen3_moe", "architectures": architectures}
    began = time.process_time()
    ran = hlwq("quantize", save_tensors(tmp_path / "m", tensors, config), "--dry-run")
    assert ran.code == (1 if architectures else 0), ran.err
    assert time.process_time() - began < 20, "most of it are imports"


def test_matrix_of_endless_rows_is_kept(tmp_path: Path) -> None:
    """A row is read, coded and decoded as a whole."""
    columns = MAX_ROW_WEIGHTS + 64
    entry = {"dtype": "BF16", "shape": [1, columns], "data_offsets": [0, 2 * columns]}
    model = save_tensors(tmp_path / "m", dense(), LLAMA)
    path = write_header(model / "model.safetensors", {"model.layers.0.mlp.up_proj.weight": entry})
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + 2 * columns)
    (kept,) = make_plan(open_source(str(model)), load_recipe()).kept
    assert kept.reason == "its rows have more than 16,777,216 weights"
