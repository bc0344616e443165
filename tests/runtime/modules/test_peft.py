"""PEFT adapters train on top of a coded model, and device maps place it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.runtime.modules import CodedMatrix, Execution

from ..loads import auto_class, load, logits, tokens

Family = Callable[[str], Path]


@pytest.fixture(scope="module")
def headed(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ties its head, which is coded with the embeddings."""
    out = tmp_path_factory.mktemp("headed") / "qwen3"
    quantize(str(family("qwen3")), out, load_recipe("head"))
    return out


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks for the old name
@pytest.mark.parametrize("how", ["coded", "dense"])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "embed_tokens", "lm_head"]], ids=str)
@pytest.mark.parametrize("recipe", ["default", "head"])
def test_a_lora_step_lowers_the_loss_and_leaves_the_codes(
    coded: Family, headed: Path, recipe: str, targets: list[str], how: Execution
) -> None:
    torch.manual_seed(0)
    base = load(headed if recipe == "head" else coded("llama"), how)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    layers = [m for m in model.modules() if isinstance(m, CodedMatrix)]
    codes = [layer.codes.clone() for layer in layers]
    ids = tokens()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = model(input_ids=ids, labels=ids).loss
    before.backward()
    optimizer.step()
    assert model(input_ids=ids, labels=ids).loss < before
    assert layers
    assert all(torch.equal(layer.codes, c) for layer, c in zip(layers, codes, strict=True))


def test_an_automatic_device_map_gives_the_same_logits(coded: Family) -> None:
    folder, ids = coded("llama"), tokens()
    mapped = auto_class(folder).from_pretrained(folder, dtype=torch.float32, device_map="auto")
    assert torch.equal(logits(mapped, input_ids=ids), logits(load(folder), input_ids=ids))
