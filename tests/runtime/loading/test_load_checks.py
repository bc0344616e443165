"""A checkpoint that does not fill its model, wholly and exactly, does not load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from hlwq_cli.codec import lloyd_max
from hlwq_cli.errors import CorruptError, HlwqError, NotFoundError, UnsupportedError
from hlwq_cli.runtime.loading import load_model, replace_modules
from hlwq_cli.runtime.modules import QuantFormat
from tests.support.files import edit_json, read_json

from ..hand_coded import edit_tensors, random_model, save_coded
from ..loads import logits, tokens
from ..modules.test_parameters import TEXT, qwen3_moe

Family = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]
INDEX = "model.safetensors.index.json"


@pytest.fixture
def edited(coded: Family, tmp_path: Path) -> Callable[..., Path]:
    """A family's coded checkpoint as one file, its tensors changed by a function."""

    def make(name: str, edit: Callable[[Tensors], object]) -> Path:
        tensors: Tensors = {}
        for file in sorted(coded(name).glob("*.safetensors")):
            tensors |= load_file(file)
        edit(tensors)
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        (tmp_path / "config.json").write_bytes((coded(name) / "config.json").read_bytes())
        return tmp_path

    return make


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(CorruptError) as caught:
        load_model(str(folder), **options)
    return caught.value.what


NORMS = ["model.layers.0.input_layernorm.weight", "model.norm.weight"]


def test_unchanged_it_loads(edited: Callable[..., Path]) -> None:
    load_model(str(edited("llama", lambda tensors: None)))


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma4"])
def test_missing_tensors_are_named_sorted(edited: Callable[..., Path], name: str) -> None:
    gone: list[str] = []

    def drop(tensors: Tensors) -> None:
        gone.extend(sorted(n for n in tensors if n.endswith("input_layernorm.weight"))[:2])
        for tensor in reversed(gone):
            del tensors[tensor]

    what = refused(edited(name, drop))
    assert f"missing: {', '.join(gone)}" in what
    assert "unexpected" not in what


@pytest.mark.parametrize("part", ["codes", "scales", "base"])
def test_a_missing_part_of_a_coded_tensor_is_named(edited: Callable[..., Path], part: str) -> None:
    name = f"model.layers.1.mlp.up_proj.{part}"
    what = refused(edited("llama", lambda tensors: tensors.pop(name)))
    assert what.endswith(f"do not match its model; missing: {name}.")


@pytest.mark.parametrize("load", [load_model, AutoModelForCausalLM.from_pretrained, AutoModel.from_pretrained])
@pytest.mark.parametrize(
    ("family_name", "lost"), [("llama", "layers.1.mlp.up_proj."), ("qwen3_moe", "layers.1.mlp.experts.")]
)
def test_a_coded_layer_missing_altogether_is_named_as_on_disk(
    edited: Callable[..., Path], load: Callable[[str], Any], family_name: str, lost: str
) -> None:
    gone: list[str] = []

    def drop(tensors: Tensors) -> None:
        gone.extend(sorted(n for n in tensors if lost in n))
        for name in gone:
            del tensors[name]

    with pytest.raises(CorruptError) as caught:
        load(str(edited(family_name, drop)))
    prefix = "model." if load == AutoModel.from_pretrained else ""
    assert f"missing: {', '.join(n.removeprefix(prefix) for n in gone)}" in caught.value.what
    assert f"{lost}weight" not in caught.value.what


def test_left_over_tensors_are_named_sorted(edited: Callable[..., Path]) -> None:
    extra = {n: torch.ones(3) for n in ("model.zebra.weight", "model.aardvark.weight")}
    what = refused(edited("llama", lambda tensors: tensors.update(extra)))
    assert "unexpected: model.aardvark.weight, model.zebra.weight" in what
    assert "missing" not in what


def test_a_left_over_part_of_a_coded_tensor_is_named(edited: Callable[..., Path]) -> None:
    name = "model.layers.0.input_layernorm.scales"
    assert name in refused(edited("llama", lambda t: t.update({name: torch.ones(3, dtype=torch.uint8)})))


def test_misshapen_tensors_are_named_sorted(edited: Callable[..., Path]) -> None:
    what = refused(edited("llama", lambda t: t.update({n: torch.ones(5) for n in reversed(NORMS)})))
    assert f"mismatched shapes: {', '.join(NORMS)}" in what


@pytest.mark.parametrize("part", ["codes", "scales", "base"])
def test_a_misshapen_part_of_a_coded_tensor_is_named(edited: Callable[..., Path], part: str) -> None:
    name = f"model.layers.0.self_attn.q_proj.{part}"
    what = refused(edited("llama", lambda t: t.update({name: t[name][:-1].clone()})))
    assert "mismatched shapes" in what
    assert name in what


@pytest.mark.parametrize("load", [load_model, AutoModelForCausalLM.from_pretrained])
def test_all_three_kinds_are_named_at_once(edited: Callable[..., Path], load: Callable[[str], Any]) -> None:
    def spoil(tensors: Tensors) -> None:
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.codes"]
        tensors["model.extra.weight"] = torch.ones(2)
        tensors["model.layers.0.input_layernorm.weight"] = torch.ones(5)

    with pytest.raises(CorruptError) as caught:
        load(str(edited("llama", spoil)))
    assert caught.value.what.endswith(
        "do not match its model; missing: model.layers.1.mlp.up_proj.codes, model.norm.weight; "
        "unexpected: model.extra.weight; mismatched shapes: model.layers.0.input_layernorm.weight."
    )


def test_plain_transformers_may_leave_out_the_head(coded: Family) -> None:
    folder, ids = coded("llama"), tokens()
    base = AutoModel.from_pretrained(folder, dtype=torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(base(ids).last_hidden_state, whole.model(ids).last_hidden_state)


def test_plain_transformers_may_put_a_new_head_on(coded: Family) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(coded("llama"), num_labels=3, dtype=torch.float32)
    assert model.score.weight.isfinite().all()
    assert model.score.weight.abs().sum() > 0


@pytest.mark.parametrize(
    "name", ["model.norm.codes", "model.layers.0.input_layernorm.codes", "model.layers.0.mlp.codes_down_proj"]
)
def test_codes_for_what_is_no_linear_layer_are_refused(edited: Callable[..., Path], name: str) -> None:
    codes = torch.zeros(4, 80, dtype=torch.uint8)
    assert name in refused(edited("llama", lambda t: t.update({name: codes})))


def test_codes_for_a_module_that_is_not_there_are_refused(edited: Callable[..., Path]) -> None:
    codes = torch.zeros(4, 80, dtype=torch.uint8)
    assert "model.nowhere.codes" in refused(edited("llama", lambda t: t.update({"model.nowhere.codes": codes})))


def test_half_a_pair_of_stacked_experts_is_refused(edited: Callable[..., Path]) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [n for n in tensors if "layers.0" in n and n.endswith("_down_proj")]:
            del tensors[name]

    assert "layers.0.mlp.experts" in refused(edited("qwen3_moe", drop))


@pytest.mark.parametrize("version", [None, 0, 99, "1"])
def test_an_unknown_format_version_is_refused(edited: Callable[..., Path], version: object) -> None:
    folder = edited("llama", lambda tensors: None)
    settings = read_json(folder / "config.json")["quantization_config"]
    edit_json(folder / "config.json", quantization_config=settings | {"format_version": version})
    with pytest.raises(UnsupportedError, match="format version"):
        load_model(str(folder))


def test_a_plain_checkpoint_that_lacks_a_tensor_is_refused_too(family: Family, copied: Callable[[Path], Path]) -> None:
    folder = copied(family("llama"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "missing: model.norm.weight" in refused(folder)


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load_model(str(tmp_path / "nothing"))


@pytest.mark.parametrize("dtype", ["int8", "nonsense", "load"])
def test_an_unknown_type_is_refused(coded: Family, dtype: str) -> None:
    with pytest.raises(HlwqError, match=dtype):
        load_model(str(coded("llama")), dtype=dtype)


def test_from_pretrained_does_not_code_on_the_fly(family: Family) -> None:
    from transformers import LlamaForCausalLM

    from hlwq_cli.runtime.loading import HLWQConfig

    with pytest.raises(UnsupportedError, match="hlwq quantize"):
        LlamaForCausalLM.from_pretrained(family("llama"), quantization_config=HLWQConfig(bits=5))


def qwen3_moe_experts(folder: Path) -> Any:
    """A mixture whose experts are coded, written by hand; returns the model of its decoded weights."""
    model = qwen3_moe()
    return save_coded(model, folder, [n for n, p in model.named_parameters() if p.ndim == 3])


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, AutoModel.from_pretrained, load_model])
def test_codes_of_single_experts_that_no_module_takes_are_refused(tmp_path: Path, load: Callable[[str], Any]) -> None:
    qwen3_moe_experts(tmp_path)
    parts = [f"model.layers.1.mlp.experts.{part}_down_proj" for part in ("codes", "scales", "base")]

    def split(tensors: Tensors) -> None:
        for part in parts:
            kind = part.rpartition(".")[2].partition("_")[0]
            for expert, tensor in enumerate(tensors.pop(part)):
                tensors[f"model.layers.1.mlp.experts.{expert}.down_proj.{kind}"] = tensor.clone()

    edit_tensors(tmp_path, split)
    with pytest.raises(CorruptError) as caught:
        load(str(tmp_path))
    assert "model.layers.1.mlp.experts.0.down_proj.codes" in caught.value.what
    assert "layers.1.mlp.experts.codes_down_proj" in caught.value.what


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, load_model])
def test_tensors_listed_as_unused_are_no_damage_and_no_others(tmp_path: Path, load: Callable[[str], Any]) -> None:
    model = random_model(LlamaForCausalLM, LlamaConfig(**TEXT))
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    twin = save_coded(model, tmp_path, names, unused={"model.layers.2.eh_proj.weight": torch.ones(3, 4)})
    found = load(str(tmp_path))
    assert torch.equal(logits(found, input_ids=tokens()), logits(twin, input_ids=tokens()))
    edit_tensors(tmp_path, lambda tensors: tensors.update({"model.layers.2.norm.weight": torch.ones(3)}))
    with pytest.raises(CorruptError) as caught:
        load(str(tmp_path))
    assert caught.value.what.endswith("do not match its model; unexpected: model.layers.2.norm.weight.")


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, load_model])
def test_stacks_listed_in_the_wrong_layout_are_refused(tmp_path: Path, load: Callable[[str], Any]) -> None:
    qwen3_moe_experts(tmp_path)
    settings = read_json(tmp_path / "config.json")["quantization_config"]
    name = "model.layers.0.mlp.experts.gate_up_proj"
    edit_json(tmp_path / "config.json", quantization_config=settings | {"transposed": [name]})
    with pytest.raises(CorruptError, match=r"mismatched shapes: .*layers\.0\.mlp\.experts\.codes_gate_up_proj"):
        load(str(tmp_path))


class Doubled(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_a_linear_layer_with_a_forward_of_its_own_holds_no_codes() -> None:
    quant_format = QuantFormat(64, "log8", {5: tuple(lloyd_max(5))})
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**TEXT))
        model.lm_head = Doubled(64, 320, bias=False)
    with pytest.raises(CorruptError, match=r"LlamaForCausalLM has no module for lm_head\.codes"):
        replace_modules(model, {"lm_head.codes": (320, 40)}, quant_format)
    assert type(model.lm_head) is Doubled


def test_the_body_of_a_model_loads_without_its_coded_head(tmp_path: Path) -> None:
    twin = save_coded(random_model(LlamaForCausalLM, LlamaConfig(**TEXT)), tmp_path, ["lm_head.weight"])
    base = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(base(tokens()).last_hidden_state, twin.model(tokens()).last_hidden_state)
