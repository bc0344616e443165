"""Small checkpoints to quantize: families written by transformers itself, and oddities written by hand.

Every weight, norm and scalar is random, so that a tensor lost, swapped or rounded shows. `FAMILIES` is the list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

DATA = Path(__file__).parents[1] / "data"
HIDDEN = 128
TEXT: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": HIDDEN, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128,
}  # fmt: skip

SIDECAR_FILES = {
    "tokenizer.json": b'{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}}}',
    "tokenizer_config.json": b'{"model_max_length": 128}\n',
    "special_tokens_map.json": b"{}",
    "tokenizer.model": bytes(range(256)),
    "chat_template.jinja": "{{ messages[0].content }} \u2192 end".encode(),
    "preprocessor_config.json": b'{"image_size": 28}',
    "processor_config.json": b'{"image_seq_length": 4}',
    "LICENSE": b"Apache License\r\nVersion 2.0\n",
    "assets/deep/notes.txt": b"no newline at the end",
}
"""Files that a quantized checkpoint must bring along, byte for byte."""

NOT_BROUGHT = {"pytorch_model.bin": b"\x80\x02pickle", ".gitattributes": b"*.safetensors filter=lfs\n"}
"""Files beside the weights that stay behind: pickles, and what belongs to git."""

CARD = "---\nlicense: mit\nlanguage: [en]\nbase_model: someone/else\n---\n\n# The source's own card\n"


def gemma4_full() -> dict[str, Any]:
    """The real configuration of google/gemma-4-26B-A4B-it."""
    config: dict[str, Any] = json.loads((DATA / "gemma4-26b.json").read_text())
    return config


def gemma4_small() -> dict[str, Any]:
    """The real configuration shrunk with its traps: 704 and 4304 divide like 192 and 208 here, layer 2 has k = v."""
    config = gemma4_full()
    config["text_config"] |= TEXT | {
        "vocab_size_per_layer_input": 320,
        "num_hidden_layers": 3,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 192,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "per_layer_config": {"02": {"head_dim": 64, "num_key_value_heads": 1}},
    }
    config["vision_config"] |= {
        "hidden_size": HIDDEN,
        "intermediate_size": 208,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "position_embedding_size": 64,
        "patch_size": 8,
    }
    names = [key for key in config if key.endswith(("_token_id", "_token_index"))]
    return config | {name: 310 + i for i, name in enumerate(names)}


def _llama() -> Any:
    import transformers as t

    return t.LlamaForCausalLM(t.LlamaConfig(**TEXT, tie_word_embeddings=False))


def _qwen3() -> Any:
    import transformers as t

    return t.Qwen3ForCausalLM(t.Qwen3Config(**TEXT, tie_word_embeddings=True))


def _gemma3() -> Any:
    import transformers as t

    vision = {
        "hidden_size": HIDDEN, "intermediate_size": 208, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 28, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    config = t.Gemma3Config(text_config=dict(TEXT), vision_config=vision, mm_tokens_per_image=1, image_token_index=319)
    return t.Gemma3ForConditionalGeneration(config)


def _gemma4() -> Any:
    import transformers as t

    settings = {k: v for k, v in gemma4_small().items() if k not in ("model_type", "architectures")}
    return t.Gemma4ForConditionalGeneration(t.Gemma4Config(**settings))


def _qwen3_moe() -> Any:
    import transformers as t

    return t.Qwen3MoeForCausalLM(
        t.Qwen3MoeConfig(**TEXT, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2)
    )


def _mixtral() -> Any:
    import transformers as t

    return t.MixtralForCausalLM(t.MixtralConfig(**TEXT, num_local_experts=3, num_experts_per_tok=2))


FAMILIES: dict[str, tuple[Callable[[], Any], torch.dtype, str]] = {
    "llama": (_llama, torch.float32, "50GB"),
    "qwen3": (_qwen3, torch.bfloat16, "50GB"),
    "gemma3": (_gemma3, torch.bfloat16, "200kB"),
    "gemma4": (_gemma4, torch.bfloat16, "300kB"),
    "qwen3_moe": (_qwen3_moe, torch.bfloat16, "200kB"),
    "mixtral": (_mixtral, torch.float16, "50GB"),
}
"""Model, type of its weights and largest file, by name."""


def save_family(name: str, folder: Path) -> Path:
    """Write a family's checkpoint, with all that belongs to one."""
    make, dtype, shard = FAMILIES[name]
    torch.manual_seed(sum(name.encode()))
    model = make().to(dtype)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape) * 0.05 + (1.0 if tensor.ndim == 1 else 0.0))
    model.save_pretrained(folder, max_shard_size=shard)
    add_sidecar_files(folder)
    return folder


def add_sidecar_files(folder: Path) -> None:
    """Put files that are no weights beside the weights."""
    for name, data in {**SIDECAR_FILES, **NOT_BROUGHT, "README.md": CARD.encode()}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def save_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Path:
    """Write tensors by hand, as one file, and a config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_shards(folder: Path, shards: Mapping[str, Mapping[str, torch.Tensor]], config: Mapping[str, Any]) -> Path:
    """Write tensors by hand, as several files with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in shards.items():
        save_file(dict(tensors), folder / file, {"format": "pt"})
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def dense(layers: int = 1, width: int = HIDDEN, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Tensors under llama's names: a query projection and a norm a layer, embeddings and a head."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.05).to(dtype)

    tensors = {"model.embed_tokens.weight": random(40, width), "lm_head.weight": random(40, width)}
    for i in range(layers):
        tensors[f"model.layers.{i}.self_attn.q_proj.weight"] = random(width, width)
        tensors[f"model.layers.{i}.input_layernorm.weight"] = random(width)
    return tensors


LLAMA = {"model_type": "llama", "tie_word_embeddings": False}
"""Names no class, so that a few tensors under llama's names are a checkpoint that can be quantized."""
LLAMA_MODEL = LLAMA | {"architectures": ["LlamaForCausalLM"]}


def tiny_llama(folder: Path) -> Path:
    """A llama of a few layers, written by hand: the quickest checkpoint to quantize."""
    return save_tensors(folder, dense(2), LLAMA)
