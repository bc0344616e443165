"""Experts stored one by one become the 3-D tensors of the model class in memory, and one by one again on export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.checkpoint import export, load_recipe, make_plan, open_coded, open_source, quantize
from hlwq_cli.errors import CorruptError
from tests.support.builders import dense, save_shards, save_tensors
from tests.support.files import read_tensors, relative_error

Family = Callable[[str], Path]
MIXTRAL = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "tie_word_embeddings": False}
MOE = "model.layers.0.block_sparse_moe"


def experts(count: int, wide: int = 192) -> dict[str, torch.Tensor]:
    """Tensors of one layer of mixtral's experts, and its router."""
    generator = torch.Generator().manual_seed(count)
    shapes = {"w1": (wide, 128), "w2": (128, wide), "w3": (wide, 128)}
    tensors = {
        f"{MOE}.experts.{e}.{w}.weight": torch.randn(shape, generator=generator).bfloat16()
        for e in range(count)
        for w, shape in shapes.items()
    }
    return tensors | {f"{MOE}.gate.weight": torch.randn(count, 128, generator=generator).bfloat16()}


def decoded(folder: Path, name: str) -> torch.Tensor:
    checkpoint = open_coded(folder)
    record = next(t for t in checkpoint.manifest.coded if t.name == name)
    rows = record.shape[0] * record.shape[1]
    return checkpoint.decode_rows(record, 0, rows).view(record.shape)


@pytest.mark.parametrize(
    ("name", "prefix", "gate", "up", "down"),
    [
        ("qwen3_moe", "model.layers.1.mlp.experts", "gate_proj", "up_proj", "down_proj"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts", "w1", "w3", "w2"),
    ],
)
def test_stack_holds_gate_rows_then_up_rows_of_each_expert(
    family: Family, coded: Family, name: str, prefix: str, gate: str, up: str, down: str
) -> None:
    source = read_tensors(family(name))
    gate_up, downs = decoded(coded(name), f"{prefix}.gate_up_proj"), decoded(coded(name), f"{prefix}.down_proj")
    for e in range(gate_up.shape[0]):
        first, second, third = (source[f"{prefix}.{e}.{part}.weight"].values for part in (gate, up, down))
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
    source = save_tensors(tmp_path / "m", dense() | experts(11, wide=64), MIXTRAL)
    quantize(str(source), tmp_path / "out", load_recipe(bits=8))
    tensors = read_tensors(source)
    stack = decoded(tmp_path / "out", f"{MOE}.experts.down_proj")
    errors = [relative_error(stack[e], tensors[f"{MOE}.experts.{e}.w2.weight"].values) for e in range(11)]
    assert max(errors) < 3.3e-5


def test_experts_spread_over_files_are_stacked(tmp_path: Path) -> None:
    tensors = experts(4)
    names = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": {n: tensors[n] for n in names[::2]},
        "model-00002-of-00002.safetensors": {n: tensors[n] for n in names[1::2]} | dense(),
    }
    source = save_shards(tmp_path / "m", shards, MIXTRAL)
    quantize(str(source), tmp_path / "out", load_recipe(bits=8))
    export(tmp_path / "out", tmp_path / "plain")
    back = read_tensors(tmp_path / "plain")
    errors = [relative_error(back[n].values, t.float()) for n, t in tensors.items() if ".experts." in n]
    assert max(errors) < 4e-5


@pytest.mark.parametrize("count", [1, 2])
def test_few_experts_come_back_with_their_own_shapes(tmp_path: Path, count: int) -> None:
    source = save_tensors(tmp_path / "m", dense() | experts(count), MIXTRAL)
    quantize(str(source), tmp_path / "out", load_recipe())
    export(tmp_path / "out", tmp_path / "plain")
    shapes = {n: t.shape for n, t in read_tensors(source).items()}
    assert {n: t.shape for n, t in read_tensors(tmp_path / "plain").items()} == shapes


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8], ids=str)
def test_experts_of_a_type_that_is_no_weight_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    odd = {n: (t * 50).to(dtype) if ".experts." in n else t for n, t in experts(2).items()}
    source = save_tensors(tmp_path / "m", dense() | odd, MIXTRAL)
    quantize(str(source), tmp_path / "out", load_recipe())
    stored = read_tensors(tmp_path / "out")
    assert {n: stored[n] for n in odd} == {n: t for n, t in read_tensors(source).items() if n in odd}


def plan(folder: Path, **options: Any) -> Any:
    return make_plan(open_source(str(folder)), load_recipe(**options))


def test_missing_expert_is_an_error_that_names_it(tmp_path: Path) -> None:
    tensors = experts(4)
    del tensors[f"{MOE}.experts.2.w3.weight"]
    with pytest.raises(CorruptError, match=r"experts\.gate_up_proj expert 2 w3 is missing"):
        plan(save_tensors(tmp_path / "m", dense() | tensors, MIXTRAL))


def test_expert_of_another_shape_is_an_error_that_names_it(tmp_path: Path) -> None:
    odd = {f"{MOE}.experts.1.w2.weight": torch.randn(128, 64).bfloat16()}
    with pytest.raises(CorruptError, match=r"experts\.1\.w2\.weight has another shape"):
        plan(save_tensors(tmp_path / "m", dense() | experts(3) | odd, MIXTRAL))


def test_stack_is_coded_whole_or_not_at_all(tmp_path: Path) -> None:
    source = save_tensors(tmp_path / "m", dense() | experts(3), MIXTRAL)
    made = plan(source, exclude=(r"experts\.1\.w2",))
    kept = {k.info.name: k.reason for k in made.kept if k.role == "expert"}
    assert sorted(kept) == [f"{MOE}.experts.{e}.w2.weight" for e in range(3)]
    assert all("different widths" in reason for reason in kept.values())


def test_stacked_experts_carry_the_width_they_were_given(tmp_path: Path) -> None:
    source = save_tensors(tmp_path / "m", dense() | experts(3), MIXTRAL)
    quantize(str(source), tmp_path / "out", load_recipe(tensor=(r"\.w2\.=3",)))
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert settings["tensors"] == {f"{MOE}.experts.down_proj": 3}
