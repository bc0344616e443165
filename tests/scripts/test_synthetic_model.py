"""Synthetic checkpoints: the names, shapes and bytes a real one would have, and weights a model can compute with."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint import load_recipe, make_plan, open_source
from scripts.bench import synthetic_model
from tests.cli.run_command import environment
from tests.support.files import read_tensors, tree

ROOT = Path(__file__).parents[2]
Family = Callable[[str], Path]


def make(config: Path, folder: Path, *options: str) -> Path:
    arguments = [str(folder), "--config", str(config), "--device", "cpu", *options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["synthetic_model.py", *arguments])
        synthetic_model.main()
    return folder


def make_in_a_process(config: Path, folder: Path, *options: str) -> Path:
    script = "scripts/bench/synthetic_model.py"
    command = [sys.executable, script, folder, "--config", config, "--device", "cpu", *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=environment(PYTHONPATH=f"{ROOT}:{ROOT / 'kernels'}"),
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "qwen3"])
def test_names_shapes_and_types_are_those_of_a_checkpoint_that_transformers_writes(
    family: Family, name: str, tmp_path: Path
) -> None:
    made = read_tensors(make(family(name) / "config.json", tmp_path / "made", "--max-shard-size", "300kB"))
    real = read_tensors(family(name))
    assert {n: (t.shape, t.dtype) for n, t in made.items()} == {n: (t.shape, t.dtype) for n, t in real.items()}


def test_seed_decides_the_bytes_and_threads_and_process_do_not(family: Family, tmp_path: Path) -> None:
    config = family("qwen3") / "config.json"
    one = make(config, tmp_path / "1", "--seed", "1", "--threads", "1")
    assert tree(make_in_a_process(config, tmp_path / "2", "--seed", "1", "--threads", "3")) == tree(one)
    assert tree(make(config, tmp_path / "3", "--seed", "2")) != tree(one)


def test_model_computes_finite_logits_and_plans_as_the_real_one(family: Family, tmp_path: Path) -> None:
    import transformers

    made = make(family("gemma4") / "config.json", tmp_path / "made")
    plans = [make_plan(open_source(str(f)), load_recipe()) for f in (made, family("gemma4"))]
    assert len(plans[0].coded) == len(plans[1].coded)
    model = transformers.AutoModelForImageTextToText.from_pretrained(made, dtype=torch.float32)
    logits = model(input_ids=torch.arange(10)[None]).logits
    assert logits.isfinite().all()
    assert 0.01 < logits.std() < 30
    assert json.loads((made / "generation_config.json").read_text()) is not None
