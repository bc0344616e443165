"""vLLM's engine on the CPU: greedy tokens from codes are those of the exported twin, and bad input is named.

Starting vLLM takes seconds of CPU time per model and half a minute per process, so all models share a few processes.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.samples import sample_file

from .models import TEXT
from .worker import run_jobs

GEMMA = {"hf_overrides": {"architectures": ["Gemma4ForCausalLM"]}}
PICTURES = {
    "max_model_len": 256, "max_num_batched_tokens": 256, "skip_tokenizer_init": False,
    "limit_mm_per_prompt": {"image": 1},
}  # fmt: skip
PICTURE = {
    "text": "<bos><|turn>user\n<|image|>Describe the picture.<turn|>\n<|turn>model\n",
    "picture": str(sample_file("eval/picture-00.png")),
}
TOLERANCE = 1e-4


def job(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "options": {"enforce_eager": True, **more.pop("options", {})}, **more}


LONG = {"prompts": [list(range(3, 300))], "options": {"max_model_len": 512}}
CODED = {"hlwq": {"execution": "coded"}}
JOBS = {  # mixtures first: vLLM makes its group of ranks for experts only with the first model of a process
    "qwen3moe": job("qwen3moe", **CODED),
    "qwen3moe in slots": job("qwen3moe", hlwq={"expert_cache_slots": 3}),
    "mixtral": job("mixtral"),
    "llama": job("llama"),
    "llama from codes": job("llama", **CODED),
    "llama with an adapter": job("llama", **CODED, adapter=True),
    "llama with a draft": job("llama", **CODED, draft=True),
    "llama, prompts twice": job(
        "llama", **CODED, twice=True, prompts=[list(range(3, 300))], options={"max_model_len": 512}
    ),
    "tied": job("tied", **CODED),
    "sample": job("sample", options=GEMMA),
    "sample from codes": job("sample", options=GEMMA, **CODED),
    "sample with a picture": job("sample", options=PICTURES, prompts=[PICTURE], **CODED),
}
TWINS = {
    "llama": job("llama-twin"),
    "llama with an adapter": job("llama-twin", adapter=True),
    "tied": job("tied-twin"),
    "qwen3moe": job("qwen3moe-twin"),
    "mixtral": job("mixtral-twin"),
    "sample": job("sample-twin", options=GEMMA),
    "sample with a picture": job("sample-twin", options=PICTURES, prompts=[PICTURE]),
    "llama, prompts twice": job("llama-twin", **LONG),
}


def with_paths(jobs: dict[str, dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Replace names of checkpoints, and of what runs with them, by paths."""
    found = []
    for each in jobs.values():
        made = {**each, "model": str(folder / each["name"])}
        if each.get("adapter"):
            made["adapter"] = str(adapter(folder / "adapter"))
        if each.get("draft"):
            draft = {"model": str(folder / "llama-twin"), "method": "draft_model", "num_speculative_tokens": 2}
            made["options"] = {**each["options"], "speculative_config": draft}
        found.append(made)
    return found


def adapter(folder: Path) -> Path:
    """An adapter of rank 4 on the queries and the down projections of the llama."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    generator, tensors = torch.Generator().manual_seed(3), {}
    for layer in range(TEXT["num_hidden_layers"]):
        for module, (rows, columns) in {"self_attn.q_proj": (256, 256), "mlp.down_proj": (256, 704)}.items():
            for half, shape in {"A": (4, columns), "B": (rows, 4)}.items():
                name = f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"
                tensors[name] = torch.randn(shape, generator=generator) * 0.1
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def answers(models: Path) -> dict[str, dict[str, Any]]:
    """What the engine makes of all jobs, in one process, by name; twins end in `-twin`."""
    jobs = {**JOBS, **{f"{name}-twin": each for name, each in TWINS.items()}}
    return dict(zip(jobs, run_jobs(with_paths(jobs, models)), strict=True))


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert "error" not in found, found["error"]
    assert "error" not in expected, expected["error"]
    assert found["tokens"] == expected["tokens"]
    for own, other in zip(found["logprobs"], expected["logprobs"], strict=True):
        assert max(abs(a - b) for a, b in zip(own, other, strict=True)) < TOLERANCE


@pytest.mark.parametrize("name", JOBS)
def test_tokens_are_those_of_the_twin(name: str, answers: dict[str, dict[str, Any]]) -> None:
    twin = next(t for t in (name, name.split(" from ")[0], name.split(" in ")[0], name.split()[0]) if t in TWINS)
    assert_same(answers[name], answers[f"{twin}-twin"])


def test_an_adapter_changes_the_answer(answers: dict[str, dict[str, Any]]) -> None:
    assert answers["llama with an adapter"]["tokens"] != answers["llama from codes"]["tokens"]


def test_a_prefix_is_cached(answers: dict[str, dict[str, Any]]) -> None:
    assert answers["llama, prompts twice"]["cached"] > 0


def test_layers_of_gemma_4_run_in_few_launches(answers: dict[str, dict[str, Any]]) -> None:
    assert answers["sample from codes"]["classes"]["HLWQGemma4Layer"] == 5
    assert "HLWQGemma4Layer" not in answers["sample"]["classes"]


def test_codes_stay_codes(answers: dict[str, dict[str, Any]]) -> None:
    assert answers["llama from codes"]["classes"]["HLWQLinearMethod"] == 8
    assert answers["llama from codes"]["classes"]["HLWQEmbeddingMethod"] == 2
    assert answers["qwen3moe"]["classes"]["HLWQMoEMethod"] == 2


def test_several_ranks_give_the_same_tokens(models: Path, answers: dict[str, dict[str, Any]]) -> None:
    ranks = {"distributed_executor_backend": "mp", "tensor_parallel_size": 2}
    jobs = {
        "llama": job("llama", options=ranks, **CODED),
        "sample": job("sample", options=GEMMA | ranks),
        "sample, expert parallel": job("sample", options=GEMMA | ranks | {"enable_expert_parallel": True}),
    }
    for name, found in zip(jobs, run_jobs(with_paths(jobs, models)), strict=True):
        assert_same(found, answers[f"{name.split(',')[0]}-twin"])


def test_the_compiled_graph_gives_the_same_tokens(models: Path, answers: dict[str, dict[str, Any]]) -> None:
    """vLLM's default mode: torch.compile with the plugin's custom ops in one graph; it takes a minute."""
    jobs = {"sample": job("sample", options=GEMMA | {"enforce_eager": False}, **CODED)}
    (found,) = run_jobs(with_paths(jobs, models), TORCHDYNAMO_DISABLE="0")
    assert_same(found, answers["sample-twin"])


def damaged(source: Path, folder: Path, damage: Any) -> str:
    shutil.copytree(source, folder)
    damage(folder)
    return str(folder)


def from_the_future(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format_version"] = 99
    (folder / "config.json").write_text(json.dumps(config))


def without_its_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")


def test_bad_input_is_named(models: Path, tmp_path: Path) -> None:
    eager, llama = {"options": {"enforce_eager": True}}, str(models / "llama")
    future = damaged(models / "llama", tmp_path / "future", from_the_future)
    jobs = {
        f"UnsupportedError: {future} has format version 99, not 1. Update hlwq.": {"model": future, **eager},
        "lacks model.safetensors": {"model": damaged(models / "llama", tmp_path / "gone", without_its_shard), **eager},
        "UsageError: additional_config has {'slots': 3}": {
            "model": str(models / "llama"),
            "hlwq": {"slots": 3},
            **eager,
        },
        "divisible by tensor parallel size (3)": {
            "model": llama,
            "options": {"enforce_eager": True, "tensor_parallel_size": 3},
        },
    }
    for (expected, _), found in zip(jobs.items(), run_jobs(list(jobs.values())), strict=True):
        assert expected in found["error"]
