"""The real configuration of the model this project is named for, planned from shapes alone."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint import Plan, Source, load_recipe, make_plan
from hlwq_cli.checkpoint.io import TensorInfo
from hlwq_cli.checkpoint.plan.architecture import layout_digest, load_architecture
from hlwq_cli.checkpoint.plan.estimate import estimate
from hlwq_cli.errors import CorruptError
from tests.support.builders import gemma4_full


@pytest.fixture(scope="module")
def source() -> Source:
    """Names and shapes as transformers makes them, without a byte of weights; the tied head is not stored."""
    import transformers

    config = gemma4_full()
    settings = {k: v for k, v in config.items() if k not in ("model_type", "architectures")}
    with torch.device("meta"):
        model = transformers.Gemma4ForConditionalGeneration(transformers.Gemma4Config(**settings))
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items() if n != "lm_head.weight"}
    file = "model.safetensors"
    tensors = {n: TensorInfo(n, "BF16", s, file, 0, 2 * torch.Size(s).numel()) for n, s in shapes.items()}
    return Source("google/gemma-4-26B-A4B-it", None, config, tensors, (), Path("nowhere"))


@pytest.fixture(scope="module")
def plan(source: Source) -> Plan:
    return make_plan(source, load_recipe(bits=5))


def test_source_has_the_tensors_and_bytes_of_the_published_model(source: Source) -> None:
    assert len(source.tensors) == 1013
    assert sum(t.nbytes for t in source.tensors.values()) == pytest.approx(51.61e9, rel=1e-4)


def test_396_matrices_and_7680_experts_are_coded(plan: Plan) -> None:
    flat = [c for c in plan.coded if len(c.shape) == 2]
    assert Counter(c.role for c in flat) == {"attention": 115, "mlp": 90, "vision": 190, "projector": 1}
    assert len(flat) == 396
    assert sum(c.matrices for c in plan.coded if len(c.shape) == 3) == 7680


def test_coded_weights_count_to_the_last_one(plan: Plan) -> None:
    assert sum(c.weights for c in plan.coded) == 25_032_501_248


def test_30_routers_are_kept(plan: Plan) -> None:
    routers = [k.info.name for k in plan.kept if k.info.name.endswith("router.proj.weight")]
    assert len(routers) == 30
    assert {k.role for k in plan.kept if "router." in k.info.name} == {"router"}


def test_tied_head_is_never_written(plan: Plan) -> None:
    assert not [name for tensor in plan.coded for name, _, _ in tensor.stored_tensors if "lm_head" in name]
    assert not [k for k in plan.kept if "lm_head" in k.info.name]


@pytest.mark.parametrize(("bits", "size"), [(5, 17.6e9), (4, 14.5e9)])
def test_size_is_what_the_readme_says(source: Source, bits: int, size: float) -> None:
    assert make_plan(source, load_recipe(bits=bits)).output_bytes == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize(("bits", "size"), [(8, 16.89e9), (6, 16.71e9), (5, 16.62e9)])
def test_size_with_embeddings_and_head_in_codes_is_what_the_benchmarks_say(
    source: Source, bits: int, size: float
) -> None:
    plan = make_plan(source, load_recipe("head", bits=5, tensor=(f"embed_tokens={bits}",)))
    assert plan.output_bytes == pytest.approx(size, rel=1e-3)
    assert {k.info.name for k in plan.kept if k.role in ("embedding", "head")} == set()


def test_memory_does_not_follow_the_size_of_the_model(plan: Plan) -> None:
    assert estimate(plan, threads=2).memory_bytes < 1.05e9


def test_plan_by_names_is_the_plan_by_its_class(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = load_architecture(source.config)
    assert architecture is not None
    assert layout_digest(source.config, source.tensors) in architecture.verified
    asked = load_recipe(
        "classic", bits=4, tensor=(r"router\.=5", r"layers\.1\.router=keep"), exclude=(r"layers\.2\.router",)
    )
    for recipe in (load_recipe(bits=5), load_recipe("head"), asked):
        by_names = make_plan(source, recipe)
        with monkeypatch.context() as patch:
            patch.setattr("hlwq_cli.checkpoint.plan.plan.layout_digest", lambda config, tensors: "another")
            by_class = make_plan(source, recipe)
        assert by_names == by_class


def test_layout_that_is_not_verified_is_held_against_the_class(source: Source) -> None:
    text = source.config["text_config"] | {"vocab_size": 262143}
    changed = replace(source, config=source.config | {"text_config": text})
    with pytest.raises(CorruptError, match=r"of another shape: model\.language_model\.embed_tokens\.weight"):
        make_plan(changed, load_recipe(bits=5))
