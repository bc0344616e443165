"""The test checkpoints are what they claim: the Hub's names, and the traps of the real model."""

import re
from collections.abc import Callable
from pathlib import Path

from tests.support.builders import FAMILIES, gemma4_full, gemma4_small
from tests.support.files import read_tensors

Family = Callable[[str], Path]


def test_expert_families_store_one_matrix_per_expert_as_on_the_hub(family: Family) -> None:
    qwen, mixtral = read_tensors(family("qwen3_moe")), read_tensors(family("mixtral"))
    assert qwen["model.layers.1.mlp.experts.3.gate_proj.weight"].shape == (64, 128)
    assert qwen["model.layers.1.mlp.experts.3.down_proj.weight"].shape == (128, 64)
    assert mixtral["model.layers.1.block_sparse_moe.experts.2.w1.weight"].shape == (192, 128)
    assert mixtral["model.layers.1.block_sparse_moe.experts.2.w2.weight"].shape == (128, 192)


def test_gemma4_keeps_the_divisibility_traps_of_the_real_configuration() -> None:
    real, small = gemma4_full(), gemma4_small()
    for config in (real, small):
        expert = config["text_config"]["moe_intermediate_size"]
        vision = config["vision_config"]["intermediate_size"]
        assert (expert % 64, expert % 128 != 0) == (0, True)
        assert (vision % 16, vision % 64 != 0) == (0, True)
        assert config["text_config"]["attention_k_eq_v"]


def test_gemma4_stores_stacked_experts_a_router_a_scalar_and_no_v_where_k_equals_v(family: Family) -> None:
    tensors = read_tensors(family("gemma4"))
    layer = "model.language_model.layers"
    assert tensors[f"{layer}.0.experts.gate_up_proj"].shape == (4, 384, 128)
    assert tensors[f"{layer}.0.experts.down_proj"].shape == (4, 128, 192)
    assert tensors[f"{layer}.0.router.proj.weight"].shape == (4, 128)
    assert tensors[f"{layer}.0.layer_scalar"].shape == (1,)
    assert tensors[f"{layer}.2.self_attn.q_proj.weight"].shape == (256, 128)
    assert f"{layer}.0.self_attn.v_proj.weight" in tensors
    assert f"{layer}.2.self_attn.v_proj.weight" not in tensors


def test_tied_heads_are_not_stored(family: Family) -> None:
    stored = {name: any("lm_head" in t for t in read_tensors(family(name))) for name in FAMILIES}
    assert stored == {
        "llama": True,
        "qwen3": False,
        "gemma3": False,
        "gemma4": False,
        "qwen3_moe": True,
        "mixtral": True,
    }


def test_every_tensor_is_random_so_that_a_lost_one_shows(family: Family, family_name: str) -> None:
    tensors = read_tensors(family(family_name))
    assert len({t.data for t in tensors.values()}) == len(tensors)


def test_families_cover_three_types_and_single_and_sharded_files(family: Family) -> None:
    types = {t.dtype for name in FAMILIES for t in read_tensors(family(name)).values()}
    files = {name: len([*family(name).glob("*.safetensors")]) for name in FAMILIES}
    assert types == {"F32", "F16", "BF16"}
    assert files["llama"] == 1
    assert files["gemma4"] > 2
    assert not [n for n in read_tensors(family("gemma3")) if re.search(r"vision_tower\.head", n)]
