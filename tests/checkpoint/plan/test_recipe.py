"""Recipes and the options that bend them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hlwq_cli.checkpoint import Plan, load_recipe, make_plan, open_source
from hlwq_cli.checkpoint.plan import plan_warnings
from hlwq_cli.errors import NotFoundError, UsageError
from tests.runtime.kinds import gpt2

Family = Callable[[str], Path]


@pytest.fixture
def plan(family: Family) -> Callable[..., Plan]:
    """A plan of qwen3 (head tied) or another family with options of load_recipe."""

    def make(which: str = "qwen3", /, **options: Any) -> Plan:
        return make_plan(open_source(str(family(which))), load_recipe(**options))

    return make


def widths(plan: Plan) -> dict[str, int]:
    return {c.name: c.scheme.bits for c in plan.coded}


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_is_the_width_of_every_coded_tensor(plan: Callable[..., Plan], bits: int) -> None:
    assert set(widths(plan(bits=bits)).values()) == {bits}


def test_the_last_tensor_option_that_matches_decides(plan: Callable[..., Plan]) -> None:
    made = widths(plan(tensor=(r"self_attn=6", r"layers\.0\.=3")))
    assert made["model.layers.0.self_attn.q_proj"] == 3
    assert made["model.layers.1.self_attn.q_proj"] == 6
    assert made["model.layers.1.mlp.up_proj"] == 5


def test_keep_leaves_a_tensor_exact(plan: Callable[..., Plan]) -> None:
    made = plan(tensor=(r"down_proj=keep",))
    reasons = {k.info.name: k.reason for k in made.kept}
    assert reasons["model.layers.0.mlp.down_proj.weight"] == "kept by --tensor"
    assert len(made.coded) == 12


def test_tensor_option_codes_what_the_recipe_would_keep(plan: Callable[..., Plan]) -> None:
    made = widths(plan("llama", tensor=(r"^lm_head=8", r"embed_tokens=6")))
    assert (made["lm_head"], made["model.embed_tokens"]) == (8, 6)


def test_include_codes_only_what_matches(plan: Callable[..., Plan]) -> None:
    made = plan(include=(r"layers\.1\.mlp",))
    assert sorted(widths(made)) == [f"model.layers.1.mlp.{p}_proj" for p in ("down", "gate", "up")]
    assert {k.reason for k in made.kept if "self_attn.q_proj" in k.info.name} == {"not included"}


def test_exclude_wins_over_include_and_tensor(plan: Callable[..., Plan]) -> None:
    made = plan(include=("mlp", "self_attn"), exclude=(r"\.q_proj",), tensor=(r"\.q_proj=8",))
    assert not [n for n in widths(made) if n.endswith("q_proj")]
    assert {k.reason for k in made.kept if "q_proj" in k.info.name} == {"excluded"}


def test_attention_plus_one_gives_attention_one_bit_more(plan: Callable[..., Plan]) -> None:
    made = plan("gemma4", name="attention-plus-one", bits=4)
    assert {(c.role, c.scheme.bits) for c in made.coded} == {
        ("attention", 5),
        ("vision", 5),
        ("projector", 5),
        ("mlp", 4),
        ("expert", 4),
    }


def test_attention_plus_one_stops_at_8_bits(plan: Callable[..., Plan]) -> None:
    assert set(widths(plan(name="attention-plus-one", bits=8)).values()) == {8}


def test_head_codes_embeddings_and_head_at_8_bits_and_the_rest_as_ever(plan: Callable[..., Plan]) -> None:
    made = {c.name: (c.role, c.scheme.bits) for c in plan("llama", name="head", bits=4).coded}
    assert made.pop("model.embed_tokens") == ("embedding", 8)
    assert made.pop("lm_head") == ("head", 8)
    assert made == {c.name: (c.role, 4) for c in plan("llama", bits=4).coded}


def test_head_takes_another_width_by_name(plan: Callable[..., Plan]) -> None:
    assert widths(plan(name="head", tensor=("embed_tokens|lm_head=6",)))["model.embed_tokens"] == 6


def test_classic_is_the_published_coding(plan: Callable[..., Plan]) -> None:
    schemes = {c.scheme for c in plan(name="classic").coded}
    (scheme,) = schemes
    assert (scheme.block_size, scheme.scale, scheme.search) == (128, "fp16", False)


def test_fast_effort_changes_the_encoder_and_nothing_a_reader_sees(plan: Callable[..., Plan]) -> None:
    made = plan(effort="fast")
    assert {(c.scheme.block_size, c.scheme.scale, c.scheme.search) for c in made.coded} == {(64, "log8", False)}


def test_recipe_from_a_file_of_the_user(plan: Callable[..., Plan], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("scheme: {block_size: 32, scale: log8}\nbits: {attention: keep, mlp: 4, head: 8}\n")
    made = plan("llama", name=str(path))
    assert {(c.role, c.scheme.bits, c.scheme.block_size) for c in made.coded} == {("mlp", 4, 32), ("head", 8, 32)}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": 1}, "2 to 8 bits, not 1"),
        ({"bits": 9}, "2 to 8 bits, not 9"),
        ({"tensor": ("mlp=9",)}, "2 to 8 bits, not 9"),
        ({"tensor": ("mlp",)}, "has no '='"),
        ({"tensor": ("mlp=five",)}, "'five' is not a number of bits"),
        ({"include": ("(",)}, "not a regular expression"),
        ({"exclude": ("[",)}, "not a regular expression"),
        ({"effort": "heroic"}, "not 'heroic'"),
    ],
)
def test_options_that_cannot_be_meant_are_usage_errors(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_recipe(**options)


@pytest.mark.parametrize("option", ["tensor", "include", "exclude"])
def test_pattern_that_matches_nothing_is_a_usage_error_that_repeats_it(plan: Callable[..., Plan], option: str) -> None:
    value = "q_prj=4" if option == "tensor" else "q_prj"
    with pytest.raises(UsageError, match=f"--{option} 'q_prj' matches no tensor"):
        plan(**{option: (value,)})


def test_unknown_recipe_is_named_with_those_there_are() -> None:
    with pytest.raises(NotFoundError, match=r"no recipe gold.*attention-plus-one, classic, default"):
        load_recipe("gold")


@pytest.mark.parametrize(
    "text",
    [
        "- a list", "bits: {attention: bits}", "scheme: {block_size: 48}\nbits: {mlp: bits}", "scheme: [1]\nbits: {}",
        "scheme: {block_size: 64}\nbits: {attentoin: bits}", "scheme: {}\nbits: {mlp: 99}", "a: [", "",
        "scheme: {blocksize: 64}\nbits: {mlp: bits}", "scheme: {}\nbits: 5",
    ],
)  # fmt: skip
def test_recipe_file_that_makes_no_sense_is_a_usage_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError):
        load_recipe(str(path))


def test_the_retired_recipe_routers_is_default_with_a_warning(plan: Callable[..., Plan]) -> None:
    made = plan("mixtral", name="routers")
    assert made.digest() == plan("mixtral").digest()
    assert made.recipe.name == "default"
    assert plan_warnings(made)[0].startswith("The recipe routers is retired, as coded routers load nowhere:")


@pytest.mark.parametrize("which", ["mixtral", "qwen3_moe", "gemma4"])
def test_a_router_that_is_asked_for_stays_exact_and_is_named(
    plan: Callable[..., Plan], which: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("scheme: {block_size: 64, scale: log8}\nbits: {expert: bits, router: bits}\n")
    for made, who in (
        (plan(which, tensor=(r"router|mlp\.gate\.|moe\.gate\.=4",)), "--tensor router"),
        (plan(which, name=str(path)), "The recipe mine"),
    ):
        assert [c.name for c in made.coded if c.role == "router"] == []
        (said,) = (w for w in plan_warnings(made) if w.startswith(who) and "routers stay exact" in w)
        assert " does not code " in said


def test_a_table_of_positions_that_is_asked_for_is_named(tmp_path: Path) -> None:
    made = make_plan(open_source(str(gpt2(tmp_path))), load_recipe(tensor=("wpe=4",)))
    assert "--tensor wpe=4 does not code transformer.wpe.weight: a position table." in plan_warnings(made)


def test_nothing_is_said_of_what_the_user_keeps(plan: Callable[..., Plan]) -> None:
    made = plan("llama", tensor=("proj=keep", "down_proj=6"), exclude=(r"layers\.0\.mlp\.down",))
    assert [w for w in plan_warnings(made) if "does not code" in w] == []
