"""Small coded checkpoints and their exported twins."""

from pathlib import Path
from typing import Any

import torch

from hlwq_cli import export, load_recipe, quantize
from hlwq_cli.samples import resolve_model

TEXT = {
    "vocab_size": 320, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "head_dim": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
MIXED = ("v_proj=6", "up_proj=4")
RECIPES = {name: load_recipe("head", tensor=MIXED) for name in ("llama", "tied")}


def save(make: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    model = make().to(torch.float32)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) * 0.06 + (1.0 if tensor.ndim == 1 else 0.0))
    model.save_pretrained(folder)
    return folder


def make_models(folder: Path) -> Path:
    """Write coded checkpoints to a folder, each with its exported twin."""
    import transformers as t

    moe = {"moe_intermediate_size": 96, "num_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False}
    sources = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, tie_word_embeddings=False)),
        "tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, tie_word_embeddings=True)),
        "qwen3moe": lambda: t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**TEXT, **moe)),
        "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**TEXT, num_local_experts=3, num_experts_per_tok=2)),
    }
    for name, make in sources.items():
        quantize(save(make, folder / f"{name}-source"), folder / name, RECIPES.get(name, load_recipe()))
    quantize(resolve_model("sample"), folder / "sample", load_recipe())
    for name in (*sources, "sample"):
        export(folder / name, folder / f"{name}-twin", "f32")
    return folder
