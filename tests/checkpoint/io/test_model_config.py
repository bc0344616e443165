"""config.json becomes the configuration that transformers itself would make of it."""

import json
from pathlib import Path

import transformers

from hlwq_cli.checkpoint.io import model_config
from hlwq_cli.checkpoint.plan.model_class import build_model


def test_floats_that_json_lacks_are_read_as_transformers_writes_them(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_heads": 4, "head_dim": 32, "vocab_size": 32, "num_hidden_layers": 1}
    config = transformers.Mamba2Config(**sizes, architectures=["Mamba2ForCausalLM"])
    config.save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert tuple(model_config(document).time_step_limit) == (0.0, float("inf"))
    built = build_model(document)
    assert (type(built.model), built.reason) == (transformers.Mamba2ForCausalLM, "")
