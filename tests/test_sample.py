"""The bundled sample: small enough, of the awkward shape it promises, and good enough to measure with."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from hlwq_cli.checkpoint import Plan, load_recipe, make_plan, open_source
from hlwq_cli.measure.perplexity import perplexity, score
from hlwq_cli.measure.text import load_text
from hlwq_cli.measure.windows import make_windows
from hlwq_cli.runtime import HLWQModel
from hlwq_cli.samples import resolve_model, sample_file

FOLDER = Path(resolve_model("sample"))
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(open_source("sample"), load_recipe(bits=5))


@pytest.fixture(scope="module")
def pictures() -> tuple[str, dict[str, str]]:
    document = json.loads(sample_file("eval/captions.json").read_text())
    return document["question"], document["captions"]


def describe(model: HLWQModel, question: str, names: list[str]) -> list[str]:
    drawn = [[Image.open(sample_file(f"eval/{name}"))] for name in names]
    answers = model.generate([question] * len(names), drawn, max_new_tokens=48)
    return [a.strip() for a in answers]


def test_it_is_at_most_16_megabytes_in_two_shards_or_more() -> None:
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 16 * MEGABYTE
    assert len([*FOLDER.glob("model-*-of-*.safetensors")]) >= 2


def test_its_shape_has_the_real_models_traps(plan: Plan) -> None:
    text, vision = plan.source.config["text_config"], plan.source.config["vision_config"]
    assert text["hidden_size"] & (text["hidden_size"] - 1)
    for width in (text["moe_intermediate_size"], text["intermediate_size"]):
        assert width % 64 == 0
        assert width % 128
    assert vision["hidden_size"] % 64
    assert text["num_experts"] >= 8
    assert text["top_k_experts"] >= 2
    assert text["attention_k_eq_v"]
    assert text["final_logit_softcapping"]
    assert {"sliding_attention", "full_attention"} == set(text["layer_types"])
    names = set(plan.source.tensors)
    full = text["layer_types"].index("full_attention")
    assert f"model.language_model.layers.{full}.self_attn.v_proj.weight" not in names
    assert "lm_head.weight" not in names
    assert any(n.endswith("layer_scalar") for n in names)


def test_its_routers_stay_exact_and_its_experts_are_coded(plan: Plan) -> None:
    layers, experts = 5, 8
    matrices: Counter[str] = Counter()
    for tensor in plan.coded:
        matrices[tensor.role] += tensor.matrices
    assert matrices["expert"] == 2 * layers * experts
    assert sum(k.role == "router" and k.info.name.endswith("proj.weight") for k in plan.kept) == layers


def test_held_out_perplexity_is_under_a_third_of_a_unigram_model() -> None:
    model = HLWQModel.from_pretrained("sample", device="cpu")
    windows = make_windows(load_text("sample"), model.tokenizer, "paper", limit=2)
    counts = torch.bincount(windows.ids[:, 1:].flatten()).double()
    shares = counts[counts > 0] / counts.sum()
    unigram = math.exp(float(-(shares * shares.log()).sum()))  # of the very text it is scored on: a low bound
    assert perplexity(score(model.model, windows)).value < unigram / 3


def test_it_captions_the_bundled_pictures_to_the_letter(pictures: tuple[str, dict[str, str]]) -> None:
    question, captions = pictures
    model = HLWQModel.from_pretrained("sample", device="cpu", dtype="float32")
    assert describe(model, question, [*captions]) == [*captions.values()]


def test_coded_at_5_bits_it_still_sees(coded_sample: str, pictures: tuple[str, dict[str, str]]) -> None:
    question, captions = pictures
    model = HLWQModel.from_pretrained(coded_sample, device="cpu", dtype="float32")
    answers = describe(model, question, [*captions])
    assert sum(a == c for a, c in zip(answers, captions.values(), strict=True)) >= 19
