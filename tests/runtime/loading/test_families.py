"""A coded checkpoint of each family runs in transformers as the model that holds the decoded weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.checkpoint import export, load_recipe, open_coded, quantize
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.modules import HLWQExperts, HLWQLinear
from tests.support.files import read_tensors

from ..loads import auto_class, load, logits, tokens

Family = Callable[[str], Path]
EXECUTIONS = ("coded", "dense")


@pytest.fixture(scope="module")
def plain(coded: Family, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A family's model, loaded from its decoded weights in float32."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            folder = tmp_path_factory.mktemp("plain") / name
            export(coded(name), folder, "f32")
            made[name] = auto_class(folder).from_pretrained(folder, dtype=torch.float32).eval()
        return made[name]

    return get


@pytest.mark.parametrize("how", EXECUTIONS)
def test_logits_equal_those_of_the_decoded_weights(
    coded: Family, plain: Callable[[str], Any], family_name: str, how: Any
) -> None:
    model, ids = load(coded(family_name), how), tokens()
    expected = logits(plain(family_name), input_ids=ids)
    assert type(model) is type(plain(family_name))
    assert expected.isfinite().all()
    torch.testing.assert_close(logits(model, input_ids=ids), expected, rtol=1e-4, atol=1e-4)


def picture_inputs(name: str, model: Any) -> dict[str, torch.Tensor]:
    """Random pixels for one picture, in the place that the family has for them."""
    generator = torch.Generator().manual_seed(1)
    ids = tokens(1)
    if name == "gemma3":
        ids[0, 2] = model.config.image_token_id
        pixels = torch.randn(1, 3, 28, 28, generator=generator)
        return {"input_ids": ids, "pixel_values": pixels, "token_type_ids": (ids == ids[0, 2]).long()}
    vision = model.config.vision_config
    side = vision.pooling_kernel_size
    ids[0, 2] = model.config.image_token_id
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))[None]
    pixels = torch.rand(1, side * side, 3 * vision.patch_size**2, generator=generator)
    types = (ids == ids[0, 2]).long()
    return {"input_ids": ids, "pixel_values": pixels, "image_position_ids": places, "mm_token_type_ids": types}


@pytest.mark.parametrize("how", EXECUTIONS)
@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_logits_with_a_picture_equal_those_of_the_decoded_weights(
    coded: Family, plain: Callable[[str], Any], name: str, how: Any
) -> None:
    model = load(coded(name), how)
    inputs = picture_inputs(name, model)
    expected = logits(plain(name), **inputs)
    other = logits(plain(name), **(inputs | {"pixel_values": inputs["pixel_values"].flip(-1)}))
    assert not torch.equal(expected, other)
    torch.testing.assert_close(logits(model, **inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", EXECUTIONS)
def test_generates(coded: Family, family_name: str, how: Any) -> None:
    out = load(coded(family_name), how).generate(
        tokens(),
        attention_mask=torch.ones(2, 9, dtype=torch.int64),
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        pad_token_id=0,
    )
    assert out.shape == (2, 12)
    assert torch.equal(out[:, :9], tokens())


def test_every_coded_tensor_of_the_manifest_is_a_coded_module(coded: Family, family_name: str) -> None:
    model = load(coded(family_name), "coded")
    stacks = [m for m in model.modules() if isinstance(m, HLWQExperts)]
    linears = [m for m in model.modules() if isinstance(m, HLWQLinear)]
    records = open_coded(coded(family_name)).manifest.coded
    assert len(linears) + 2 * len(stacks) == len(records)


@pytest.mark.parametrize("how", EXECUTIONS)
def test_saved_again_every_tensor_has_the_same_bytes(coded: Family, family_name: str, how: Any, tmp_path: Path) -> None:
    load(coded(family_name), how, "auto").save_pretrained(tmp_path)
    before, after = read_tensors(coded(family_name)), read_tensors(tmp_path)
    assert sorted(after) == sorted(before)
    assert {n for n in before if before[n] != after[n]} == set()


def test_what_was_saved_again_loads_and_answers_alike(coded: Family, family_name: str, tmp_path: Path) -> None:
    load(coded(family_name), "coded", "auto").save_pretrained(tmp_path)
    expected = logits(load(coded(family_name)), input_ids=tokens())
    assert torch.equal(logits(load_model(str(tmp_path), dtype="float32"), input_ids=tokens()), expected)


def test_gpt_oss_experts_are_coded_and_their_biases_kept(tmp_path: Path) -> None:
    import transformers as t

    torch.manual_seed(0)
    config = t.GptOssConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    model = t.GptOssForCausalLM(config)
    model.save_pretrained(tmp_path / "source")
    quantize(str(tmp_path / "source"), tmp_path / "out", load_recipe())
    manifest = open_coded(tmp_path / "out").manifest
    coded = {record.name: record.shape for record in manifest.coded if record.role == "expert"}
    layers = [f"model.layers.{i}.mlp.experts" for i in range(2)]
    assert coded == {f"{x}.gate_up_proj": (4, 256, 128) for x in layers} | {
        f"{x}.down_proj": (4, 128, 128) for x in layers
    }
    assert {f"{x}.{name}_bias" for x in layers for name in ("gate_up_proj", "down_proj")} <= {
        k.name for k in manifest.kept
    }
    export(tmp_path / "out", tmp_path / "plain", "f32")
    ids = tokens()
    expected = logits(t.GptOssForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32), input_ids=ids)
    assert torch.equal(logits(load(tmp_path / "out"), input_ids=ids), expected)
