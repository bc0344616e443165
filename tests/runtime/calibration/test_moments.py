"""The stream sums what the linear layers and experts of a whole model take in, whatever the model's family."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from PIL import Image

from hlwq_cli.checkpoint import Source, load_recipe, make_plan, open_source
from hlwq_cli.runtime import load_processor
from hlwq_cli.runtime.calibration import StreamCalibration, token_inputs
from hlwq_cli.samples import resolve_model, sample_file
from tests.support.builders import TEXT, save_family

from .reference import load, moments

TOKENS = torch.randint(5, 300, (6, 24), generator=torch.Generator().manual_seed(0))


def build(model_class: str, config_class: str, **settings: Any) -> Any:
    return lambda: getattr(t, model_class)(getattr(t, config_class)(**settings))


OTHERS = {
    "gpt_oss": build("GptOssForCausalLM", "GptOssConfig", **TEXT, num_local_experts=4, num_experts_per_tok=2),
    "t5": build(
        "T5ForConditionalGeneration", "T5Config", vocab_size=320, d_model=128, d_kv=32, d_ff=192, num_layers=2,
        num_heads=4, tie_word_embeddings=False,
    ),
    "bert": build(
        "BertForMaskedLM", "BertConfig", vocab_size=320, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=192,
    ),
    "albert": build(
        "AlbertForMaskedLM", "AlbertConfig", vocab_size=320, embedding_size=64, hidden_size=128, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=192,
    ),
    "gpt2": build("GPT2LMHeadModel", "GPT2Config", vocab_size=320, n_positions=64, n_embd=128, n_layer=2, n_head=4),
    "qwen3_next": build(
        "Qwen3NextForCausalLM", "Qwen3NextConfig",
        **TEXT | {"num_hidden_layers": 2}, moe_intermediate_size=64, shared_expert_intermediate_size=64, num_experts=4,
        num_experts_per_tok=2, layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4,
        linear_num_key_heads=2, linear_key_head_dim=32, linear_value_head_dim=32,
    ),
    "deepseek_v3": build(
        "DeepseekV3ForCausalLM", "DeepseekV3Config", **TEXT | {"num_key_value_heads": 4}, moe_intermediate_size=64,
        n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1, n_group=1, topk_group=1, n_shared_experts=1,
        q_lora_rank=64, kv_lora_rank=64, qk_rope_head_dim=32, qk_nope_head_dim=32, v_head_dim=32,
    ),
    "jamba": build(
        "JambaForCausalLM", "JambaConfig", **{k: v for k, v in TEXT.items() if k != "head_dim"}, num_experts=4,
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, mamba_d_state=16,
        use_mamba_kernels=False, pad_token_id=0,
    ),
    "zamba": build(
        "ZambaForCausalLM", "ZambaConfig", **TEXT | {"num_hidden_layers": 4}, mamba_d_state=16, use_mamba_kernels=False,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], n_mamba_heads=2, attention_hidden_size=256,
    ),
}  # fmt: skip


def save(name: str, folder: Path) -> Path:
    if name not in OTHERS:
        return save_family(name, folder)
    torch.manual_seed(0)
    model = OTHERS[name]()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape) * 0.05 + (1.0 if tensor.ndim == 1 else 0.0))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma4", "mixtral", *OTHERS])
def test_moments_are_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    source = open_source(str(save(name, tmp_path / name)))
    inputs = token_inputs([TOKENS[:4], TOKENS[4:, :17]], "cpu", source.config.get("is_encoder_decoder", False))
    compare(source, tmp_path / name, inputs)


def test_pictures_reach_the_tower_and_text_the_rest() -> None:
    folder = resolve_model("sample")
    source, processor = open_source(folder), load_processor(folder)
    picture = Image.open(sample_file("eval/picture-00.png")).convert("RGB")
    made = processor(text=[f"{processor.image_token} A red square."], images=[[picture]], return_tensors="pt")
    shown = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
    assert compare(source, Path(folder), [*token_inputs([TOKENS], "cpu"), shown, shown]) == {}


def compare(source: Source, folder: Path, inputs: list[dict[str, torch.Tensor]]) -> Mapping[str, str]:
    """Compare moments with those of the whole model, and return why tensors have none."""
    plan = make_plan(source, load_recipe(bits=4))
    calibration = StreamCalibration(inputs, "cpu")
    reasons = calibration.prepare(plan)
    expected = moments(load(folder, source.config["architectures"][0]), inputs)
    coded = {tensor.name: tensor for tensor in plan.coded}
    seen = set()
    for layer in calibration.layers(coded):
        for tensor, found in layer.tensors.items():
            h, count = expected[coded[tensor].parameter]
            shape = found.moments.h.shape
            torch.testing.assert_close(found.moments.h.double(), h.view(shape), rtol=1e-3, atol=1e-4 * float(h.max()))
            assert torch.equal(torch.as_tensor(found.moments.count).double().view(-1), count)
            assert found.prior == ("isotropic" if tensor.endswith(".experts.down_proj") else "shared")
            if found.weight is not None:
                rows = torch.cat([part.read(source) for part in coded[tensor].parts])
                assert torch.equal(found.weight.reshape(rows.shape), rows.float())
            seen.add(tensor)
    reached = {n for n, c in coded.items() if c.parameter in expected and c.role != "embedding"}
    assert seen == reached
    assert set(reasons) == set(coded) - seen
    return reasons
