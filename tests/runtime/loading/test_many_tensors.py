"""A checkpoint of many tensors loads in steps linear in their number, and shows how far it is."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.modules import HLWQLinear
from tests.support.builders import LLAMA_MODEL, save_tensors
from tests.support.effort import lines_run
from tests.support.files import read_tensors

LAYERS = (20, 80)
"""Of 23 tensors each: some five hundred and two thousand tensors."""
LAYER = "model.layers.0."
SHAPE = {
    "vocab_size": 40, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 64,
    "num_attention_heads": 1, "num_key_value_heads": 1, "dtype": "bfloat16",
}  # fmt: skip


def small_llama(folder: Path) -> Path:
    """A llama of one very small layer."""
    generator = torch.Generator().manual_seed(0)
    linears = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    tensors = {n: torch.randn(40, 64, generator=generator) for n in ("model.embed_tokens.weight", "lm_head.weight")}
    tensors |= {f"{LAYER}{name}.weight": torch.randn(64, 64, generator=generator) * 0.05 for name in linears}
    tensors |= {f"{LAYER}{n}_layernorm.weight": torch.ones(64) for n in ("input", "post_attention")}
    tensors["model.norm.weight"] = torch.ones(64)
    return save_tensors(folder, {n: t.bfloat16() for n, t in tensors.items()}, LLAMA_MODEL | SHAPE)


def deep_llama(coded: Path, folder: Path, layers: int) -> Path:
    """A coded llama of very many layers, each of which is the one of `coded`."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(coded / "model.safetensors").items():
        head, layer, rest = name.partition(LAYER)
        names = [f"model.layers.{i}.{rest}" for i in range(layers)] if layer else [head]
        tensors |= {name: tensor.clone() for name in names}
    config = json.loads((coded / "config.json").read_text())
    return save_tensors(folder, tensors, config | {"num_hidden_layers": layers})


def test_four_times_as_many_tensors_load_in_four_times_the_steps(tmp_path: Path) -> None:
    quantize(str(small_llama(tmp_path / "source")), tmp_path / "small", load_recipe())
    load_model(str(tmp_path / "small"), device="cpu")  # imports what both then have
    lines = []
    for layers in LAYERS:
        folder = deep_llama(tmp_path / "small", tmp_path / str(layers), layers)
        assert len(read_tensors(folder)) > 22 * layers
        model, count = lines_run(partial(load_model, str(folder), device="cpu"))
        lines.append(count)
        assert sum(isinstance(m, HLWQLinear) for m in model.modules()) == 7 * layers
        assert model(torch.tensor([[1, 2]])).logits.isfinite().all()
    assert lines[1] < 5 * lines[0]  # comparing all names with all would take sixteen times as many


def test_loading_shows_a_bar(
    coded_sample: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)  # as without HF_HUB_DISABLE_PROGRESS_BARS
    load_model(coded_sample, device="cpu")
    out, err = capfd.readouterr()
    assert "Loading weights: 100%" in err
    assert out == ""
