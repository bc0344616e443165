"""Experts stored one by one become the 3-D tensors of the model class in memory, and one by one again on export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hlwq_cli.checkpoint import export, load_recipe, make_plan, open_coded, open_source, quantize
from hlwq_cli.errors import CorruptError
from tests.support.builders import save_shards
from tests.support.files import read_tensors, relative_error

Family = Callable[[str], Path]
MOE = "model.layers.0.block_sparse_moe"
STACKS = "model.layers.0.mlp.experts"


def mixtral(folder: Path, count: int, wide: int = 192, **changed: torch.Tensor | None) -> Path:
    """Write a mixtral of one layer, with tensors replaced or, by None, left out."""
    config = transformers.MixtralConfig(
        vocab_size=40, hidden_size=128, intermediate_size=wide, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=count, num_experts_per_tok=1,
    )  # fmt: skip
    torch.manual_seed(count)
    transformers.MixtralForCausalLM(config).bfloat16().save_pretrained(folder)
    tensors: dict[str, torch.Tensor | None] = {**load_file(folder / "model.safetensors"), **changed}
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / "model.safetensors", {"format": "pt"})
    return folder


def decoded(folder: Path, name: str) -> torch.Tensor:
    checkpoint = open_coded(folder)
    record = next(t for t in checkpoint.manifest.coded if t.name == name)
    rows = record.shape[0] * record.shape[1]
    return checkpoint.decode_rows(record, 0, rows).view(record.shape)


@pytest.mark.parametrize(
    ("name", "prefix", "gate", "up", "down"),
    [
        ("qwen3_moe", "model.layers.1.mlp.experts", "gate_proj", "up_proj", "down_proj"),
        ("mixtral", "model.layers.1.mlp.experts", "w1", "w3", "w2"),
    ],
)
def test_stack_holds_gate_rows_then_up_rows_of_each_expert(
    family: Family, coded: Family, name: str, prefix: str, gate: str, up: str, down: str
) -> None:
    source = read_tensors(family(name))
    stored = prefix.replace(".mlp.", ".block_sparse_moe.") if name == "mixtral" else prefix
    gate_up, downs = decoded(coded(name), f"{prefix}.gate_up_proj"), decoded(coded(name), f"{prefix}.down_proj")
    for e in range(gate_up.shape[0]):
        first, second, third = (source[f"{stored}.{e}.{part}.weight"].values for part in (gate, up, down))
        assert gate_up.shape[1:] == (2 * first.shape[0], 128)
        assert relative_error(gate_up[e, : len(first)], first) < 1.8e-3
        assert relative_error(gate_up[e, len(first) :], second) < 1.8e-3
        assert relative_error(downs[e], third) < 1.8e-3


def test_names_of_stored_stacks_do_not_start_with_the_parameter_name(coded: Family) -> None:
    stored = {n for n in read_tensors(coded("qwen3_moe")) if ".experts." in n}
    prefix = "model.layers.0.mlp.experts"
    assert {f"{prefix}.{kind}_gate_up_proj" for kind in ("codes", "scales", "base")} <= stored
    assert {f"{prefix}.{kind}_down_proj" for kind in ("codes", "scales", "base")} <= stored
    assert not [n for n in stored if n.rpartition(".")[2].startswith(("gate_up_proj", "down_proj"))]


def test_experts_are_stacked_by_number_and_not_by_letters(tmp_path: Path) -> None:
    source = mixtral(tmp_path / "m", 11, wide=64)
    quantize(str(source), tmp_path / "out", load_recipe(bits=8))
    tensors = read_tensors(source)
    stack = decoded(tmp_path / "out", f"{STACKS}.down_proj")
    errors = [relative_error(stack[e], tensors[f"{MOE}.experts.{e}.w2.weight"].values) for e in range(11)]
    assert max(errors) < 3.3e-5


def test_experts_spread_over_files_are_stacked(tmp_path: Path) -> None:
    whole = mixtral(tmp_path / "whole", 4)
    tensors = load_file(whole / "model.safetensors")
    names = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": {n: tensors[n] for n in names[::2]},
        "model-00002-of-00002.safetensors": {n: tensors[n] for n in names[1::2]},
    }
    source = save_shards(tmp_path / "m", shards, json.loads((whole / "config.json").read_text()))
    quantize(str(source), tmp_path / "out", load_recipe(bits=8))
    export(tmp_path / "out", tmp_path / "plain")
    back = read_tensors(tmp_path / "plain")
    errors = [relative_error(back[n].values, t.float()) for n, t in tensors.items() if ".experts." in n]
    assert max(errors) < 4e-5


@pytest.mark.parametrize("count", [1, 2])
def test_few_experts_come_back_with_their_own_shapes(tmp_path: Path, count: int) -> None:
    source = mixtral(tmp_path / "m", count)
    quantize(str(source), tmp_path / "out", load_recipe())
    export(tmp_path / "out", tmp_path / "plain")
    shapes = {n: t.shape for n, t in read_tensors(source).items()}
    assert {n: t.shape for n, t in read_tensors(tmp_path / "plain").items()} == shapes


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8], ids=str)
def test_experts_of_a_type_that_is_no_weight_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    plain = load_file(mixtral(tmp_path / "plain", 2) / "model.safetensors")
    odd = {n: (t * 50).to(dtype) for n, t in plain.items() if ".experts." in n}
    source = mixtral(tmp_path / "m", 2, **odd)
    quantize(str(source), tmp_path / "out", load_recipe())
    stored = read_tensors(tmp_path / "out")
    assert {n: stored[n] for n in odd} == {n: t for n, t in read_tensors(source).items() if n in odd}


def plan(folder: Path, **options: Any) -> Any:
    return make_plan(open_source(str(folder)), load_recipe(**options))


def test_missing_expert_is_an_error_that_names_its_kind(tmp_path: Path) -> None:
    source = mixtral(tmp_path / "m", 4, **{f"{MOE}.experts.2.w3.weight": None})
    with pytest.raises(
        CorruptError, match=r"mlp\.experts\.gate_up_proj \(of 4 like .*w1\.weight, 3 like .*w3\.weight\)"
    ):
        plan(source)


def test_expert_of_another_shape_is_an_error_that_names_its_stack(tmp_path: Path) -> None:
    source = mixtral(tmp_path / "m", 3, **{f"{MOE}.experts.1.w2.weight": torch.randn(128, 64).bfloat16()})
    with pytest.raises(CorruptError, match=r"of another shape: model\.layers\.0\.mlp\.experts\.down_proj"):
        plan(source)


def test_stack_is_coded_whole_or_not_at_all(tmp_path: Path) -> None:
    source = mixtral(tmp_path / "m", 3)
    made = plan(source, exclude=(r"experts\.1\.w2",))
    kept = {k.info.name: k.reason for k in made.kept if k.role == "expert"}
    assert sorted(kept) == [f"{MOE}.experts.{e}.w2.weight" for e in range(3)]
    assert all("different widths" in reason for reason in kept.values())


def test_stacked_experts_carry_the_width_they_were_given(tmp_path: Path) -> None:
    source = mixtral(tmp_path / "m", 3)
    quantize(str(source), tmp_path / "out", load_recipe(tensor=(r"\.w2\.=3",)))
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert settings["tensors"] == {f"{STACKS}.down_proj": 3}
