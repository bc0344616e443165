"""Tiny models, with random weights, of the model types that transformers ships, and inputs that they accept.

No sizes are written down per model type, except for a few: a configuration is made from the class's own defaults.
Sizes that are known by name are made small. Where the result does not build, fewer of them are changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HIDDEN = 128
VOCABULARY = 320
MAX_PARAMETERS = 50_000_000

COUNTS = {
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 2, "encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2,
    "depth": 2, "num_dense_layers": 1, "first_k_dense_replace": 1,
    "vocab_size": VOCABULARY, "text_vocab_size": VOCABULARY, "decoder_vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY, "entity_vocab_size": 64, "max_position_embeddings": 256,
    "n_positions": 256, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "top_k_experts": 2, "num_experts_per_token": 2,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "chunk_size": 16, "mamba_chunk_size": 16,
    "mamba_d_state": 16, "state_size": 16, "ssm_state_size": 16,
}  # fmt: skip
"""Numbers of layers, experts and rows, by the name of their setting."""

WIDTHS = {
    "hidden_size": HIDDEN, "d_model": HIDDEN, "n_embd": HIDDEN, "dim": HIDDEN, "embed_dim": HIDDEN,
    "embedding_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "projection_dim": HIDDEN, "text_embed_dim": HIDDEN,
    "entity_emb_size": HIDDEN, "encoder_hidden_size": HIDDEN, "decoder_hidden_size": HIDDEN,
    "out_hidden_size": HIDDEN, "text_hidden_size": HIDDEN, "audio_hidden_size": HIDDEN, "condition_dim": HIDDEN,
    "intermediate_size": 192, "ffn_dim": 192, "d_ff": 192, "encoder_ffn_dim": 192, "decoder_ffn_dim": 192,
    "n_inner": 192, "ffn_hidden_size": 192, "intermediate_dim": 192, "intermediate_size_mlp": 192, "mlp_dim": 192,
    "feed_forward_dim": 192, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, "expert_dim": 64,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "d_kv": 32, "kv_channels": 32, "q_lora_rank": 64, "kv_lora_rank": 64,
    "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32, "image_size": 32, "patch_size": 16,
}  # fmt: skip
"""Widths, heads and pictures, by the name of their setting."""

LAYERS = frozenset(name for name in COUNTS if "layer" in name or name == "depth")
LEVELS: tuple[dict[str, int | None], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"head_dim": None, "num_key_value_heads": 4},
    {"head_dim": 64, "num_key_value_heads": 4},
    {"patch_size": None, "image_size": None},
    dict.fromkeys(LAYERS),
    dict.fromkeys(LAYERS) | {"num_key_value_heads": 4, "patch_size": None, "image_size": None},
    {"head_dim": None, "num_key_value_heads": None, "patch_size": None, "image_size": None},
    dict.fromkeys(WIDTHS),
    dict.fromkeys({*WIDTHS, *LAYERS}),
)
"""Other sizes to try in turn; None is the default. The first ones give the smallest models."""

Changes = Mapping[str, int | None]
NOTHING: Changes = {}

PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "attention_types", "indexer_types")

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
OTHER_LAYER = {"head_dim": 64, "num_key_value_heads": 1}
"""Sizes of the second layer, where layers differ."""

AUTO_CLASSES: dict[str, Any] = {
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image-text": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "base": auto.MODEL_MAPPING_NAMES,
}


@dataclass(frozen=True)
class Family:
    """A model type and one of its classes.

    Attributes:
        model_type: as in config.json.
        class_name: of the model.
        auto_class: short name of the auto class that lists it; see AUTO_CLASSES.
    """

    model_type: str
    class_name: str
    auto_class: str


class NotBuiltError(Exception):
    """No tiny model of this type can be built here."""


def families() -> Iterator[Family]:
    """Yield every class of the auto classes, in their order; base classes only of types that have no other."""
    seen: set[tuple[str, str]] = set()
    types: set[str] = set()
    for kind, mapping in AUTO_CLASSES.items():
        for model_type, names in mapping.items():
            for name in names if isinstance(names, tuple | list) else [names]:
                if (model_type, name) in seen or (kind == "base" and model_type in types):
                    continue
                seen.add((model_type, name))
                yield Family(model_type, name, kind)
        types |= set(mapping)


def tiny_config(model_type: str, changes: Changes = NOTHING) -> PreTrainedConfig:
    """Return a configuration with small sizes.

    Args:
        model_type: as in config.json.
        changes: sizes other than the small ones; see LEVELS.
    """
    settings = with_own(shrink(CONFIG_MAPPING[model_type], changes), model_type)
    config = CONFIG_MAPPING[model_type](**settings)
    set_special_tokens(config)
    return config


def with_own(settings: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Return settings with those that a model type has of its own."""
    own = OWN_SETTINGS.get(model_type, {})
    return settings | {
        name: settings[name] | value if isinstance(value, dict) and isinstance(settings.get(name), dict) else value
        for name, value in own.items()
    }


def default_settings(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return what a configuration class sets when it is given nothing."""
    return {name: value for name, value in cls().to_dict().items() if name != "transformers_version"}


def shrink(cls: type[PreTrainedConfig], changes: Changes) -> dict[str, Any]:
    """Return settings of a configuration class, small; those of parts are dictionaries in it."""
    base = default_settings(cls)
    aliases = getattr(cls, "attribute_map", None) or {}
    settings: dict[str, Any] = {}
    for name, size in (COUNTS | WIDTHS | changes).items():
        real = aliases.get(name, name)
        given = base.get(real)
        unknown = real not in base or isinstance(given, list | tuple | dict | str | bool)
        if size is None or unknown or is_fixed(cls, real):
            continue
        larger = isinstance(given, int) and 0 < given < size and name not in changes
        settings[real] = given if larger else size
    for name, part in (getattr(cls, "sub_configs", None) or {}).items():
        settings[name] = shrink_part(base.get(name), part, changes)
    settings |= per_layer_settings(cls, base, settings)
    return {name: value for name, value in settings.items() if value is not None}


def is_fixed(cls: type, name: str) -> bool:
    """Return whether a setting is a property that cannot be set."""
    member = inspect.getattr_static(cls, name, None)
    return isinstance(member, property) and member.fset is None


def shrink_part(given: Any, part: type, changes: Changes) -> dict[str, Any] | None:
    """Return small settings of a part of a model, such as its vision tower; None leaves the default."""
    if isinstance(given, dict) and given.get("model_type") in CONFIG_MAPPING:
        part = CONFIG_MAPPING[given["model_type"]]
    if not isinstance(part, type) or not issubclass(part, PreTrainedConfig):
        return None
    try:
        settings = with_own(shrink(part, changes), part.model_type)
    except Exception:
        return None
    if isinstance(given, dict):
        cut = {name for name, value in default_settings(part).items() if isinstance(value, list | tuple)}
        usual = {name: value for name, value in given.items() if name not in settings and name not in cut}
        settings = usual | settings
    return settings | {"model_type": part.model_type} if part.model_type else settings


def per_layer_settings(cls: type, base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return lists with an entry for each layer, cut to layers that have every kind of entry."""
    counts = [name for name in LAYER_COUNTS if name in settings]
    if not counts:
        return {}
    layers = base[counts[0]]
    lists = {n: list(v) for n, v in base.items() if isinstance(v, list | tuple) and len(v) > 2 and not is_fixed(cls, n)}
    lists = {name: value for name, value in lists.items() if len(value) == layers or name in PER_LAYER}
    places = sorted({value.index(kind) for name, value in lists.items() if name in PER_LAYER for kind in value})
    if len(places) < 2:
        places = sorted({*places, 0, 1})[:2]
    found: dict[str, Any] = {name: [value[i] for i in places if i < len(value)] for name, value in lists.items()}
    if lists:
        found |= dict.fromkeys(counts, len(places))
    if isinstance(base.get("per_layer_config"), dict):
        other = next(iter(base["per_layer_config"].values()))
        found["per_layer_config"] = {"1": {name: OTHER_LAYER[name] for name in other if name in OTHER_LAYER}}
    return found


def set_special_tokens(config: PreTrainedConfig) -> None:
    """Put ids of special tokens that lie beyond the small vocabularies inside them, each at a place of its own."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", None) or {})]
    places: dict[str, int] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    for part in parts:
        if not isinstance(part, PreTrainedConfig):
            continue
        for name, value in list(part.to_dict().items()):
            value = value[0] if isinstance(value, list) and value and name == "eos_token_id" else value
            is_id = name.endswith(("token_id", "token_index")) and not is_fixed(type(part), name)
            if is_id and isinstance(value, int) and value >= 64:
                setattr(part, name, places.setdefault(name, VOCABULARY + 2 - len(places)))


MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}}
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 32},
    "blt": {"encoder_hash_byte_group_vocab": 300},
    "chameleon": {"vocabulary_map": {"<image>": 310, "IMGIMGAAZ": 311}},
    "codegen": {"rotary_dim": 16},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}, "ffn_config": {"ffn_hidden_size": 192}},
    "emu3": {"vocabulary_map": {"<image>": 310, "<|visual token 000000|>": 311}},
    "esm": {"pad_token_id": 1, "mask_token_id": 3, "vocab_size": 64},
    "falcon_h1": {"mamba_d_ssm": 256, "mamba_n_heads": 8, "mamba_d_head": 32},
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "intermediate_size": 192, "laurel_rank": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 64,
        "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0],
    },
    "glm4v_text": MROPE, "glm_ocr_text": MROPE,
    "glm4v_moe_text": {"rope_parameters": MROPE["rope_parameters"] | {"mrope_section": [2, 3, 3]}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 32},
    "inkling2_text": {"unpadded_vocab_size": 300}, "inkling2_loop_text": {"unpadded_vocab_size": 300},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 32, "num_heads": 8, "n_groups": 1},
    "paddleocr_vl_text": MROPE, "qwen2_vl_text": MROPE, "qwen2_5_vl_text": MROPE, "qwen2_5_omni_text": MROPE,
    "perceiver": {"num_latents": 16, "d_latents": 64, "num_self_attends_per_block": 2, "train_size": [32, 32]},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 32, "indexer_budget": 16,
        "indexer_compress_ratio": 2, "ngram_vocab_size_base": 100, "split_ngram_parts": 2, "ple_embed_dim": 16,
        "ple_layer_ids": [1], "layer_types": ["linear_attention", "full_attention"], "eos_token_id": 2,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "axial_pos_shape": (4, 4), "axial_pos_embds_dim": (64, 64), "hidden_size": 128, "num_buckets": 2,
        "attn_layers": ["local", "lsh"], "lsh_attn_chunk_length": 4, "local_attn_chunk_length": 4,
        "max_position_embeddings": 16,
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
}  # fmt: skip
"""Settings of single model types, and of parts of that type, on top of the small sizes."""

CLASS_SETTINGS: dict[str, dict[str, Any]] = {"ReformerModelWithLMHead": {"is_decoder": True}}
"""Settings of single classes."""


def model_class(name: str) -> Any:
    """Return a class of transformers by its name."""
    found = getattr(transformers, name, None)
    if found is None:
        raise NotBuiltError(f"transformers has no {name}")
    return found


def config_of(family: Family, changes: Changes) -> PreTrainedConfig:
    """Return a configuration of the kind that the class takes: for a part of a model, that of the part."""
    config = tiny_config(family.model_type, changes)
    wanted = model_class(family.class_name).config_class
    if not isinstance(config, wanted):
        parts = [getattr(config, name, None) for name in type(config).sub_configs]
        config = next((part for part in parts if isinstance(part, wanted)), config)
    for name, value in CLASS_SETTINGS.get(family.class_name, {}).items():
        setattr(config, name, value)
    return config


def tiny_configs(family: Family) -> Iterator[PreTrainedConfig]:
    """Yield configurations that build models of at most MAX_PARAMETERS, from the smallest sizes on.

    Raises:
        NotBuiltError: none of LEVELS does.
    """
    cls, reason, tried = model_class(family.class_name), "", []
    for changes in LEVELS:
        try:
            config = config_of(family, changes)
            with torch.device("meta"):
                model = cls(config)
        except ImportError as error:
            raise NotBuiltError(first_line(error)) from error
        except Exception as error:
            reason = reason or first_line(error)
            continue
        count, document = sum(p.numel() for p in model.parameters()), config_of(family, changes).to_dict()
        if count > MAX_PARAMETERS:
            reason = reason or f"at {count / 1e6:.0f} million parameters it is too large"
        elif document not in tried:
            tried.append(document)
            yield config
    if not tried:
        raise NotBuiltError(reason)


def first_line(error: BaseException) -> str:
    """Return the kind of an error and its first sentence, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


def fill(model: nn.Module, seed: int = 0) -> None:
    """Give a model random weights of deviation .06, and norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():
                near = 1.0 if parameter.ndim == 1 and "norm" in name.lower() and name.endswith("weight") else 0.0
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.06 + near)
