"""A checkpoint of twenty thousand tensors loads in seconds, and shows how far it is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.runtime.linear import HLWQLinear
from hlwq_cli.runtime.loading import load_model
from tests.builders import LLAMA, save_tensors
from tests.files import read_tensors

LAYERS = 870
SHAPE = {
    "vocab_size": 40, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": LAYERS, "head_dim": 64,
    "num_attention_heads": 1, "num_key_value_heads": 1, "dtype": "bfloat16",
}  # fmt: skip


def deep_llama(folder: Path) -> Path:
    """A llama of very many very small layers, alike but for a factor."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(64, 64, generator=generator) * 0.05
    linears = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    tensors = {n: torch.randn(40, 64, generator=generator) for n in ("model.embed_tokens.weight", "lm_head.weight")}
    tensors["model.norm.weight"] = torch.ones(64)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        tensors |= {f"{layer}.{name}.weight": matrix * (1 + i / LAYERS) for name in linears}
        tensors |= {f"{layer}.{n}_layernorm.weight": torch.ones(64) for n in ("input", "post_attention")}
    return save_tensors(folder, {n: t.bfloat16() for n, t in tensors.items()}, LLAMA | SHAPE)


@pytest.mark.slow
def test_twenty_thousand_tensors_load_in_seconds_with_a_bar(tmp_path: Path) -> None:
    quantize(str(deep_llama(tmp_path / "source")), tmp_path / "out", load_recipe())
    assert len(read_tensors(tmp_path / "out")) > 20_000
    start = time.perf_counter()
    model = load_model(str(tmp_path / "out"), device="cpu")
    seconds = time.perf_counter() - start
    assert sum(isinstance(m, HLWQLinear) for m in model.modules()) == 7 * LAYERS
    assert model(torch.tensor([[1, 2]])).logits.isfinite().all()
    assert seconds < 90  # some 10 s here; comparing all names with all would be 4e8 comparisons, minutes


def test_loading_shows_a_bar(tmp_path: Path) -> None:
    quantize("sample", tmp_path / "out", load_recipe())
    code = f"from hlwq_cli.runtime.loading import load_model; load_model({str(tmp_path / 'out')!r}, device='cpu')"
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_PROGRESS_BARS"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "Loading weights: 100%" in done.stderr
    assert done.stdout == ""
