"""A file that somebody planted beside a result is named where a loader would read it: exit code 6."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hlwq_cli.checkpoint.format.unlisted import unlisted_files
from hlwq_cli.errors import GateMissedError
from hlwq_cli.runtime import HLWQModel
from tests.cli.run_command import assert_refused, hlwq
from tests.support.hub_server import HubServer

Copied = Callable[[Path], Path]
READ = [
    "model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_config.json", "tf_model.h5",
    "generation_config.json", "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "merges.txt",
    "model.fp16.safetensors", "bpe.codes",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_templates/a.jinja", "modules.json",
    "preprocessor_config.json", "processor_config.json", "1_Pooling/config.json", "2_Dense/model.safetensors",
    "custom_generate/generate.py", "sentencepiece.bpe.model", "vocab.json",
]  # fmt: skip
NOT_READ = [
    "notes.txt", "plots/loss.png", "my-adapter.safetensors", ".secret", ".model.safetensors", "results.json", "LICENSE",
    "hlwq_manifest.json", "hlwq_bench.json", "checkpoint-500/model.safetensors", "assets/config.json",
]  # fmt: skip


def test_names_that_loaders_look_for_are_found() -> None:
    assert unlisted_files([*READ, *NOT_READ], []) == tuple(sorted(READ))
    assert unlisted_files([*READ, *NOT_READ], READ) == ()


def plant_weights(folder: Path) -> None:
    """Put a file beside the shards that transformers prefers to them, with other values."""
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    changed = {name: t * 0 if name.endswith(".base") else t for name, t in tensors.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})


def test_planted_weights_are_named_by_everything_that_opens_the_result(
    coded: Callable[[str], Path], copied: Copied, tmp_path: Path
) -> None:
    folder = copied(coded("llama"))
    plant_weights(folder)
    for command in (
        ["inspect", folder, "--verify"],
        ["inspect", folder],
        ["export", folder, tmp_path / "p"],
        ["card", folder],
    ):
        assert_refused(hlwq(*command), 6, "that its manifest does not list", "model.safetensors")
    assert hlwq("bench", folder, "--ppl", "--data", "sample").code == 6
    with pytest.raises(GateMissedError, match=r"model\.safetensors"):
        HLWQModel.from_pretrained(str(folder), device="cpu")


def test_plain_transformers_refuses_planted_weights_too(coded: Callable[[str], Path], copied: Copied) -> None:
    import transformers

    folder = copied(coded("llama"))
    plant_weights(folder)
    with pytest.raises(GateMissedError, match=r"model\.safetensors"):
        transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "video_preprocessor_config.json", "merges.txt"])
def test_planted_settings_are_named(coded: Callable[[str], Path], copied: Copied, name: str) -> None:
    folder = copied(coded("llama"))
    (folder / name).write_text(json.dumps({"base_model_name_or_path": "someone/else", "peft_type": "LORA"}))
    assert_refused(hlwq("inspect", folder, "--verify"), 6, name)
    assert hlwq("bench", folder, "--ppl", "--data", "sample").code == 6


def test_planted_link_that_leads_nowhere_yet_is_named(coded: Callable[[str], Path], copied: Copied) -> None:
    folder = copied(coded("llama"))
    (folder / "adapter_config.json").symlink_to("/nowhere/adapter_config.json")
    assert_refused(hlwq("inspect", folder), 6, "adapter_config.json")


def test_files_of_the_user_do_not_matter(coded: Callable[[str], Path], copied: Copied) -> None:
    folder = copied(coded("llama"))
    for name in NOT_READ[:6]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    assert hlwq("inspect", folder, "--verify").code == 0


def test_planted_file_in_a_repository_is_named(hub: HubServer, coded: Callable[[str], Path], copied: Copied) -> None:
    folder = copied(coded("llama"))
    (folder / "adapter_config.json").write_text("{}")
    hub.publish("ann/model", folder)
    assert_refused(hlwq("inspect", "ann/model"), 6, "ann/model holds files", "adapter_config.json")
