"""The plan of each family: which tensor plays which role, how many are coded, what is kept and why."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.checkpoint import Plan, load_recipe, make_plan, open_source
from hlwq_cli.checkpoint.plan.plan import CodedTensor

Family = Callable[[str], Path]


def plan_of(folder: Path) -> Plan:
    source = open_source(str(folder))
    plan = make_plan(source, load_recipe())
    source.close()
    return plan


def matrices(plan: Plan) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for tensor in plan.coded:
        counts[tensor.role] += tensor.matrices
    return dict(counts)


def kept(plan: Plan) -> dict[str, int]:
    return dict(Counter(k.role for k in plan.kept))


# Two layers (gemma4: three, the last without v_proj), 4 experts a layer (mixtral: 3), towers of two layers.
CODED = {
    "llama": {"attention": 8, "mlp": 6},
    "qwen3": {"attention": 8, "mlp": 6},
    "gemma3": {"attention": 8, "mlp": 6, "vision": 12},
    "gemma4": {"attention": 11, "mlp": 9, "expert": 3 * 2 * 4, "vision": 2 * 7 + 1, "projector": 1},
    "qwen3_moe": {"attention": 8, "expert": 2 * 2 * 4},
    "mixtral": {"attention": 8, "expert": 2 * 2 * 3},
}


def test_plan_codes_every_linear_layer_and_expert_of_a_family(family: Family, family_name: str) -> None:
    assert matrices(plan_of(family(family_name))) == CODED[family_name]


KEPT = {
    "llama": {"embedding": 1, "norm": 5, "head": 1},
    "qwen3": {"embedding": 1, "norm": 9},
    "qwen3_moe": {"embedding": 1, "norm": 9, "router": 2, "head": 1},
    "mixtral": {"embedding": 1, "norm": 5, "router": 2, "head": 1},
}


@pytest.mark.parametrize("name", sorted(KEPT))
def test_plan_keeps_routers_norms_embeddings_and_heads(family: Family, name: str) -> None:
    assert kept(plan_of(family(name))) == KEPT[name]


def test_plan_of_gemma4_keeps_routers_scalars_norms_and_position_tables(family: Family) -> None:
    plan = plan_of(family("gemma4"))
    names = {k.info.name for k in plan.kept}
    layer = "model.language_model.layers.2"
    assert {f"{layer}.router.proj.weight", f"{layer}.router.scale", f"{layer}.router.per_expert_scale"} <= names
    assert {f"{layer}.layer_scalar", f"{layer}.post_feedforward_layernorm_2.weight"} <= names
    assert {f"model.vision_tower.{n}" for n in ("patch_embedder.position_embedding_table", "std_bias")} <= names
    assert kept(plan)["router"] == 3 * 3


def test_plan_of_gemma3_keeps_the_projector_which_is_no_linear_layer(family: Family) -> None:
    kept_tensors = {k.info.name: k for k in plan_of(family("gemma3")).kept}
    projector = next(k for n, k in kept_tensors.items() if n.endswith("mm_input_projection_weight"))
    assert projector.reason == "a bare parameter, not a linear layer"


def test_plan_accounts_for_every_tensor_once(family: Family, family_name: str) -> None:
    plan = plan_of(family(family_name))
    names = [p.name for c in plan.coded for p in c.parts]
    names += [k.info.name for k in (*plan.kept, *plan.dropped)]
    assert sorted(names) == sorted(plan.source.tensors)


def test_plan_gives_every_kept_tensor_a_reason(family: Family, family_name: str) -> None:
    assert all(k.reason for k in plan_of(family(family_name)).kept)


def test_plan_knows_the_bytes_it_will_write(family: Family, coded: Family, family_name: str) -> None:
    from tests.support.files import read_tensors

    plan = plan_of(family(family_name))
    assert plan.output_bytes == sum(len(t.data) for t in read_tensors(coded(family_name)).values())


def test_widths_that_no_block_divides_are_padded_to_whole_blocks(family: Family) -> None:
    coded_tensors = {c.name: c for c in plan_of(family("gemma4")).coded}
    down = coded_tensors["model.vision_tower.encoder.layers.0.mlp.down_proj.linear"]
    assert isinstance(down, CodedTensor)
    assert down.shape == (128, 208)
    assert [shape for _, _, shape in down.stored_tensors] == [(128, 256 * 5 // 8), (128, 4), (128,)]


def test_expert_widths_of_an_odd_number_of_blocks_need_no_padding(family: Family) -> None:
    coded_tensors = {c.name: c for c in plan_of(family("gemma4")).coded}
    down = coded_tensors["model.language_model.layers.0.experts.down_proj"]
    assert [shape for _, _, shape in down.stored_tensors] == [(4, 128, 192 * 5 // 8), (4, 128, 3), (4, 128)]
