"""The resolver: the stored rows that it names are those that transformers puts into each parameter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from hlwq_cli.checkpoint import load_recipe, make_plan, open_source, quantize
from hlwq_cli.checkpoint.plan import plan_warnings
from hlwq_cli.checkpoint.plan.codable import parameter_kinds
from hlwq_cli.checkpoint.plan.model_class import build_model
from hlwq_cli.checkpoint.plan.resolver import Resolution, resolve
from hlwq_cli.errors import CorruptError, UnsupportedError

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FOUR = {"num_local_experts": 4, "num_experts_per_tok": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "experts one by one": lambda: t.MixtralForCausalLM(t.MixtralConfig(**SIZES, **FOUR)),
    "experts under other names": lambda: t.GraniteMoeForCausalLM(t.GraniteMoeConfig(**SIZES, **FOUR)),
    "transposed experts": lambda: t.GptOssForCausalLM(t.GptOssConfig(**SIZES, head_dim=16, **FOUR)),
    "split weights": lambda: t.HrmTextForCausalLM(t.HrmTextConfig(**SIZES, head_dim=16)),
    "transposed layers": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=40, n_positions=32, bos_token_id=1, eos_token_id=2)
    ),
    "one tied head": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, tie_word_embeddings=True)),
}


def saved(folder: Path, make: Callable[[], Any]) -> Path:
    torch.manual_seed(0)
    make().save_pretrained(folder)
    return folder


def resolved(folder: Path) -> Resolution:
    model = build_model(json.loads((folder / "config.json").read_text())).model
    transposed = [name for name, kind in parameter_kinds(model).items() if kind.is_transposed]
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}
    return resolve(model, shapes, transposed)


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_is_made_of_the_rows_that_are_named(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path / "m", MODELS[kind])
    found, stored = resolved(folder), load_file(folder / "model.safetensors")
    loaded = getattr(t, json.loads((folder / "config.json").read_text())["architectures"][0]).from_pretrained(folder)
    kinds = parameter_kinds(loaded)
    assert (found.unused, found.missing, found.mismatched) == ((), (), ())
    for name, value in loaded.state_dict().items():
        if value.ndim < 2 or name not in found.origins:
            continue
        origin = found.origins[name]
        assert origin.runs is not None, origin.reason
        rows = torch.cat(
            [
                as_rows(stored[run.source], origin.is_transposed)[run.start :: run.step][: run.count]
                for run in origin.runs
            ]
        )
        wanted = value.transpose(-2, -1) if kinds[name].is_transposed else value
        assert torch.equal(rows, wanted.flatten(0, -2)), name


def as_rows(tensor: torch.Tensor, transposed: bool) -> torch.Tensor:
    return (tensor.transpose(-2, -1) if transposed else tensor).flatten(0, -2)


def test_tensors_that_no_module_takes_are_kept_and_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", MODELS["one tied head"])
    tensors = load_file(folder / "model.safetensors")
    extra = {"model.layers.2.self_attn.q_proj.weight": torch.randn(64, 64), "model.old_buffer": torch.randn(3)}
    save_file(tensors | extra, folder / "model.safetensors", {"format": "pt"})
    plan = make_plan(open_source(str(folder)), load_recipe())
    assert plan.unused == tuple(sorted(extra))
    assert set(extra) <= {tensor.name for tensor in plan.kept}
    assert f"No module takes {', '.join(sorted(extra))}: kept as in the source." in plan_warnings(plan)


def test_checkpoint_that_lacks_a_tensor_is_refused_with_its_name(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", MODELS["one tied head"])
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CorruptError, match=r"LlamaForCausalLM; missing: model\.layers\.1\.mlp\.up_proj\.weight\."):
        make_plan(open_source(str(folder)), load_recipe())


def test_class_that_transformers_lacks_is_planned_by_names_and_said(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", MODELS["one tied head"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NobodysModel"]}))
    plan = make_plan(open_source(str(folder)), load_recipe())
    assert plan.unchecked == "transformers has no NobodysModel"
    assert any("transformers has no NobodysModel" in warning for warning in plan_warnings(plan))


def test_linear_layers_with_an_equal_forward_of_their_own_are_coded(tmp_path: Path) -> None:
    sizes = {k: v for k, v in SIZES.items() if k not in ("intermediate_size", "num_key_value_heads")}
    folder = saved(tmp_path / "m", lambda: t.FalconForCausalLM(t.FalconConfig(**sizes)))
    plan = make_plan(open_source(str(folder)), load_recipe())
    assert len(plan.coded) == 8


def test_class_that_cannot_be_built_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", MODELS["one tied head"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "no such function"}))
    with pytest.raises(UnsupportedError, match=r"build LlamaForCausalLM from its config\.json: ") as e:
        make_plan(open_source(str(folder)), load_recipe())
    assert (e.value.exit_code, "no such function" in e.value.what) == (1, True)


def test_class_that_needs_a_package_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_package(*arguments: object) -> None:
        raise ImportError("LlamaModel requires the timm library but it was not found in your environment. Install it")

    folder = saved(tmp_path / "m", MODELS["one tied head"])
    monkeypatch.setattr(t.LlamaModel, "__init__", without_package)
    says = "transformers cannot build LlamaForCausalLM here: LlamaModel requires the timm library"
    with pytest.raises(UnsupportedError, match=says):
        quantize(str(folder), tmp_path / "out", load_recipe())
    assert not (tmp_path / "out").exists()


def test_class_of_a_part_is_built_from_the_part_of_the_config(tmp_path: Path) -> None:
    text = t.Gemma3TextConfig(**SIZES)
    folder = saved(tmp_path / "m", lambda: t.Gemma3ForCausalLM(text))
    whole = t.Gemma3Config(text_config=text.to_dict()).to_dict() | {"architectures": ["Gemma3ForCausalLM"]}
    alone = make_plan(open_source(str(folder)), load_recipe())
    (folder / "config.json").write_text(json.dumps(whole))
    plan = make_plan(open_source(str(folder)), load_recipe())
    assert plan.unchecked == ""
    assert [tensor.name for tensor in plan.coded] == [tensor.name for tensor in alone.coded]
