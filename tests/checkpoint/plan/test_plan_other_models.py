"""Models beyond the built families: no experts and no text layers are silently left in 16 bits.

Each is built by transformers on two layers and written by save_pretrained, whose names are those of the Hub.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.checkpoint import Plan, load_recipe, make_plan, open_source
from tests.support.builders import TEXT, gemma4_small

PLAIN = {k: v for k, v in TEXT.items() if k != "head_dim"}
FOUR = {"num_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = {
    "q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32
}  # fmt: skip
EYES = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
NARROW = {"moe_intermediate_size": 64}

# transformers class, its configuration, settings, and how many expert matrices it holds.
MIXTURES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "qwen2_moe": ("Qwen2Moe", "ForCausalLM", TEXT | FOUR | NARROW | {"shared_expert_intermediate_size": 64}, 24),
    "olmoe": ("Olmoe", "ForCausalLM", PLAIN | FOUR, 24),
    "phimoe": ("Phimoe", "ForCausalLM", PLAIN | {"num_local_experts": 4, "num_experts_per_tok": 2}, 24),
    "deepseek_v2": ("DeepseekV2", "ForCausalLM", PLAIN | ROUTED | LATENT | NARROW | {"topk_method": "greedy"}, 12),
    "deepseek_v3": ("DeepseekV3", "ForCausalLM", PLAIN | ROUTED | LATENT | NARROW, 12),
    "glm4_moe": ("Glm4Moe", "ForCausalLM", TEXT | ROUTED | NARROW, 12),
    "dots1": ("Dots1", "ForCausalLM", TEXT | ROUTED | NARROW | {"n_shared_experts": 1}, 12),
    "qwen3_next": (
        "Qwen3Next", "ForCausalLM", TEXT | FOUR | NARROW | {
            "shared_expert_intermediate_size": 64, "linear_num_value_heads": 2, "linear_num_key_heads": 2,
            "linear_key_head_dim": 32, "linear_value_head_dim": 32,
        }, 24,
    ),
    "minimax": ("MiniMax", "ForCausalLM", TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2}, 24),
    "lfm2_moe": (
        "Lfm2Moe", "ForCausalLM",
        PLAIN | FOUR | NARROW | {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]}, 12,
    ),
    "hunyuan_v1_moe": ("HunYuanMoEV1", "ForCausalLM", TEXT | {"num_experts": 4, "moe_topk": 2}, 24),
    "granitemoe": ("GraniteMoe", "ForCausalLM", PLAIN | {"num_local_experts": 4, "num_experts_per_tok": 2}, 24),
}  # fmt: skip

SEEING: dict[str, tuple[str, dict[str, Any]]] = {
    "llava": (
        "Llava",
        {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": EYES | {"model_type": "clip_vision_model"},
            "image_token_index": 255,
        },
    ),
    "paligemma": (
        "PaliGemma",
        {
            "text_config": TEXT | {"model_type": "gemma"},
            "vision_config": EYES | {"model_type": "siglip_vision_model"},
            "projection_dim": 128,
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {
            "text_config": TEXT | {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}},
            "vision_config": {
                "hidden_size": 128,
                "intermediate_size": 192,
                "depth": 2,
                "num_heads": 4,
                "out_hidden_size": 128,
            },
        },
    ),
}


def plan_of(folder: Path, family: str, head: str, settings: dict[str, Any]) -> Plan:
    import transformers

    config = getattr(transformers, f"{family}Config")(**settings)
    getattr(transformers, f"{family}{head}")(config).to(torch.bfloat16).save_pretrained(folder)
    return make_plan(open_source(str(folder)), load_recipe())


EXPERT = re.compile(r"\.experts\.|\.(in|out)put_linear")
ROUTER = re.compile(r"\.(gate|router|router\.layer|gate\.wg)(\.weight)?$")


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_every_expert_of_a_mixture_is_coded(tmp_path: Path, name: str) -> None:
    family, head, settings, experts = MIXTURES[name]
    plan = plan_of(tmp_path, family, head, settings)
    coded = [c for c in plan.coded if EXPERT.search(c.name)]
    assert {k.info.name: k.reason for k in plan.kept if EXPERT.search(k.info.name)} == {}
    assert sum(c.matrices * (2 if re.search("gate_up|input_linear", c.name) else 1) for c in coded) == experts


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_every_router_of_a_mixture_is_kept(tmp_path: Path, name: str) -> None:
    family, head, settings, _ = MIXTURES[name]
    plan = plan_of(tmp_path, family, head, settings)
    assert [c.name for c in plan.coded if ROUTER.search(c.name)] == []
    assert [k.info.name for k in plan.kept if ROUTER.search(k.info.name)]


@pytest.mark.parametrize("name", sorted(SEEING))
def test_every_text_layer_of_a_model_that_sees_is_coded(tmp_path: Path, name: str) -> None:
    family, settings = SEEING[name]
    plan = plan_of(tmp_path, family, "ForConditionalGeneration", settings)
    text = [c for c in plan.coded if "vision" not in c.name and "visual" not in c.name and ".layers." in c.name]
    kept = {k.info.name: k.reason for k in plan.kept if re.search(r"(self_attn|mlp)\..*_proj\.weight", k.info.name)}
    assert kept == {}
    assert len(text) == 2 * 7


def test_gemma4_with_ears_has_its_audio_tower_coded(tmp_path: Path) -> None:
    settings = {k: v for k, v in gemma4_small().items() if k not in ("model_type", "architectures")}
    settings["text_config"] |= {"enable_moe_block": False, "hidden_size_per_layer_input": 64}
    settings["audio_config"] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    plan = plan_of(tmp_path, "Gemma4", "ForConditionalGeneration", settings)
    coded = Counter(c.role for c in plan.coded)
    assert coded["audio"] == 2 * 10
    assert coded["projector"] == 2
    assert {k.info.name for k in plan.kept if "embed_tokens_per_layer" in k.info.name}
