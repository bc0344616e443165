"""A model that no architecture file names is planned all the same, and the plan says by which rule."""

from pathlib import Path

import torch

from hlwq_cli.checkpoint import Plan, export, load_recipe, make_plan, open_source, quantize
from tests.support.builders import HIDDEN, save_tensors
from tests.support.files import read_tensors, relative_error

GENERAL = "general rule, by name and shape"
BY_CLASS = "general rule, limited to the linear layers of the model's class"


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


ODD = {
    "transformer.wte.weight": random(50, HIDDEN),
    "transformer.h.0.ln_1.weight": random(HIDDEN),
    "transformer.h.0.attn.out.weight": random(HIDDEN, HIDDEN),
    "transformer.h.0.attn.out.bias": random(HIDDEN),
    "transformer.h.0.moe.gate.weight": random(4, HIDDEN),
    "transformer.h.0.moe.router.layer.weight": random(8, HIDDEN),
    "transformer.h.0.moe.experts.gate_up_proj": random(4, 64, HIDDEN),
    "transformer.h.0.conv.weight": random(8, 8, 3),
    "visual.blocks.0.fc.weight": random(HIDDEN, 64),
    "audio.fc.weight": random(64, 64),
    "lm_head.weight": random(50, HIDDEN),
}


def plan(folder: Path) -> Plan:
    return make_plan(open_source(str(folder)), load_recipe())


def test_model_that_transformers_does_not_know_is_judged_by_names_and_shapes(tmp_path: Path) -> None:
    made = plan(save_tensors(tmp_path / "m", ODD, {"model_type": "nobody_knows_it"}))
    assert made.rule == GENERAL
    assert {(c.name, c.role) for c in made.coded} == {
        ("transformer.h.0.attn.out", "linear"),
        ("transformer.h.0.moe.experts.gate_up_proj", "expert"),
        ("visual.blocks.0.fc", "vision"),
        ("audio.fc", "audio"),
    }


def test_routers_embeddings_and_head_of_an_unknown_model_are_kept(tmp_path: Path) -> None:
    made = plan(save_tensors(tmp_path / "m", ODD, {"model_type": "nobody_knows_it"}))
    roles = {k.info.name: k.role for k in made.kept}
    assert roles["transformer.h.0.moe.gate.weight"] == "router"
    assert roles["transformer.h.0.moe.router.layer.weight"] == "router"
    assert roles["transformer.wte.weight"] == "embedding"
    assert roles["lm_head.weight"] == "head"
    assert roles["transformer.h.0.ln_1.weight"] == "norm"


def test_config_without_a_model_type_is_no_obstacle(tmp_path: Path) -> None:
    assert plan(save_tensors(tmp_path / "m", ODD, {})).rule == GENERAL


def test_model_class_decides_where_transformers_knows_the_model(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=HIDDEN, intermediate_size=192, num_hidden_layers=1, num_attention_heads=4
    )
    model = transformers.GPTNeoXForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "m")
    made = plan(tmp_path / "m")
    assert made.rule == BY_CLASS
    layer = "gpt_neox.layers.0"
    assert {c.name for c in made.coded} == {
        f"{layer}.attention.query_key_value",
        f"{layer}.attention.dense",
        f"{layer}.mlp.dense_h_to_4h",
        f"{layer}.mlp.dense_4h_to_h",
    }


def gpt2(folder: Path) -> Path:
    import transformers

    config = transformers.GPT2Config(
        n_embd=HIDDEN, n_layer=1, n_head=4, vocab_size=64, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    transformers.GPT2LMHeadModel(config).bfloat16().save_pretrained(folder)
    return folder


def test_layers_that_hold_their_weight_transposed_are_coded_by_their_columns(tmp_path: Path) -> None:
    made = plan(gpt2(tmp_path / "m"))
    layer = "transformer.h.0"
    assert {c.name: c.shape for c in made.coded} == {
        f"{layer}.attn.c_attn": (3 * HIDDEN, HIDDEN),
        f"{layer}.attn.c_proj": (HIDDEN, HIDDEN),
        f"{layer}.mlp.c_fc": (4 * HIDDEN, HIDDEN),
        f"{layer}.mlp.c_proj": (HIDDEN, 4 * HIDDEN),
    }
    assert made.transposed == tuple(sorted(f"{c.name}.weight" for c in made.coded))


def test_head_codes_the_embeddings_that_the_class_begins_with_and_no_positions(tmp_path: Path) -> None:
    made = make_plan(open_source(str(gpt2(tmp_path / "m"))), load_recipe("head"))
    assert [(c.name, c.role) for c in made.coded if c.role != "linear"] == [("transformer.wte", "embedding")]
    assert {k.info.name: k.role for k in made.kept}["transformer.wpe.weight"] == "other"


def test_embeddings_that_an_encoder_and_a_decoder_share_are_kept(tmp_path: Path) -> None:
    import transformers

    config = transformers.T5Config(vocab_size=64, d_model=HIDDEN, d_ff=192, num_layers=1, num_heads=4, d_kv=32)
    transformers.T5ForConditionalGeneration(config).bfloat16().save_pretrained(tmp_path / "m")
    made = make_plan(open_source(str(tmp_path / "m")), load_recipe("head"))
    assert made.coded
    assert "shared.weight" in {k.info.name for k in made.kept}


def test_positions_of_a_model_that_nobody_knows_are_kept_and_its_embeddings_coded(tmp_path: Path) -> None:
    tables = {"wpe.weight": random(50, HIDDEN), "pos_embed.weight": random(40, HIDDEN)}
    source = save_tensors(tmp_path / "m", ODD | tables, {"model_type": "nobody_knows_it"})
    made = make_plan(open_source(str(source)), load_recipe("head"))
    assert {c.name for c in made.coded if c.role in ("embedding", "head")} == {"transformer.wte", "lm_head"}
    assert {k.info.name for k in made.kept if k.reason == "a position table"} == set(tables)


def test_unknown_model_survives_the_round_trip(tmp_path: Path) -> None:
    source = save_tensors(tmp_path / "m", ODD, {"model_type": "nobody_knows_it"})
    result = quantize(str(source), tmp_path / "out", load_recipe(bits=6))
    export(tmp_path / "out", tmp_path / "plain")
    back = read_tensors(tmp_path / "plain")
    sources = {s for t in result.manifest.coded for s in t.sources}
    assert {n: t.shape for n, t in back.items()} == {n: tuple(t.shape) for n, t in ODD.items()}
    assert all(relative_error(back[n].values, ODD[n]) < 4.6e-4 for n in sources)
    assert all(torch.equal(back[n].values, ODD[n]) for n in set(ODD) - sources)
