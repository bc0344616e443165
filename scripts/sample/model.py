"""The architecture of the bundled sample, and the forward passes that train it.

    python -c "from scripts.sample.model import build; print(sum(p.numel() for p in build('wide').parameters()))"

The module is transformers' own `Gemma4ForConditionalGeneration`. Training differs in three ways: experts are evaluated
densely (two matrix products instead of a loop), the buffers that the real model has trained (layer_scalar, std_bias,
std_scale) are parameters, and dropout is added with hooks.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Gemma4Config, Gemma4ForConditionalGeneration, GenerationConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextAttention, Gemma4TextRouter, Gemma4VisionModel

from scripts.sample.pictures import SIDE
from scripts.sample.text import SPECIAL

VOCAB = 4096
MAX_POSITIONS = 2048
PATCH, POOL = 8, 2
GRID = SIDE // PATCH
SOFT_TOKENS = (GRID // POOL) ** 2
TRAINED_BUFFERS = ("layer_scalar", "std_bias", "std_scale")


@dataclass(frozen=True)
class Size:
    """What differs between the sizes tried; `full` lists the layers with full attention."""

    hidden: int
    layers: int
    mlp: int
    expert: int
    full: tuple[int, ...]


SIZES = {
    "wide": Size(hidden=320, layers=5, mlp=192, expert=64, full=(2, 4)),
    "expert": Size(hidden=192, layers=5, mlp=192, expert=192, full=(2, 4)),
    "deep": Size(hidden=192, layers=9, mlp=320, expert=64, full=(4, 8)),
    "tiny": Size(hidden=64, layers=2, mlp=64, expert=64, full=(1,)),
}


def _text_config(size: Size) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers,
        "layer_types": ["full_attention" if i in size.full else "sliding_attention" for i in range(size.layers)],
        "per_layer_config": {f"{i:02d}": {"head_dim": 128, "num_key_value_heads": 1} for i in size.full},
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "attention_k_eq_v": True,
        "sliding_window": 64,
        "max_position_embeddings": MAX_POSITIONS,
        "final_logit_softcapping": 30.0,
        "use_bidirectional_attention": "vision",
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": size.expert,
        "pad_token_id": SPECIAL.index("<pad>"),
        "eos_token_id": SPECIAL.index("<eos>"),
        "bos_token_id": SPECIAL.index("<bos>"),
    }


VISION_CONFIG = {
    "hidden_size": 144,
    "intermediate_size": 208,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 24,
    "patch_size": PATCH,
    "pooling_kernel_size": POOL,
    "position_embedding_size": 144,
    "standardize": True,
}


def build(name: str) -> Gemma4ForConditionalGeneration:
    """Return a model of the named size with random weights, in float32."""
    ids = {key: SPECIAL.index(f"<{word}>") for key, word in _TOKEN_WORDS.items()}
    config = Gemma4Config(text_config=_text_config(SIZES[name]), vision_config=dict(VISION_CONFIG), **ids)
    config.architectures = ["Gemma4ForConditionalGeneration"]
    model = Gemma4ForConditionalGeneration(config)
    nn.init.normal_(model.model.vision_tower.patch_embedder.position_embedding_table, std=0.02)
    stops = [SPECIAL.index("<eos>"), SPECIAL.index("<turn|>")]
    text = config.text_config
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=stops,
        pad_token_id=text.pad_token_id,
        do_sample=True,
        temperature=0.7,
        top_k=64,
        top_p=0.95,
    )
    return model


_TOKEN_WORDS = {
    "boi_token_id": "|image",
    "image_token_id": "|image|",
    "eoi_token_id": "image|",
    "video_token_id": "|video|",
    "boa_token_id": "|audio",
    "audio_token_id": "|audio|",
    "eoa_token_index": "audio|",
}


def dense_experts(experts: nn.Module, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Run all experts for all tokens: (N, H) -> (N, H). Four times the arithmetic of top-2 of 8, without a loop."""
    gates = torch.zeros(len(hidden), experts.num_experts, dtype=top_k_weights.dtype, device=hidden.device)
    gates = gates.scatter(1, top_k_index, top_k_weights)
    gate, up = F.linear(hidden, experts.gate_up_proj.flatten(0, 1)).unflatten(1, (experts.num_experts, -1)).chunk(2, -1)
    inner = experts.act_fn(gate) * up * gates.unsqueeze(-1)
    return inner.flatten(1).to(hidden.dtype) @ experts.down_proj.transpose(1, 2).flatten(0, 1).to(hidden.dtype)


ALL_EXPERTS_FUNCTIONS.register("dense", dense_experts)


def _keep_balance(router: Gemma4TextRouter, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Store the load-balancing loss on the router (Switch Transformer, eq. 4; 1 if the load is even)."""
    probabilities, _, index = output
    load = F.one_hot(index, probabilities.shape[-1]).float().mean((0, 1))
    router.balance = probabilities.shape[-1] * (load * probabilities.mean(0)).sum()


def _drop(norm: nn.Module, _: Any, output: Tensor) -> Tensor:
    return F.dropout(output, norm.dropout, norm.training)


def _branches(model: Gemma4ForConditionalGeneration) -> list[nn.Module]:
    layers = model.model.language_model.layers
    return [norm for layer in layers for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm)]


def set_dropout(model: Gemma4ForConditionalGeneration, rate: float) -> None:
    """Set the fraction of each branch's output that the next forward pass drops."""
    for norm in _branches(model):
        norm.dropout = rate


def prepare_training(model: Gemma4ForConditionalGeneration) -> None:
    """Set up dense experts, trainable buffers, dropout on every branch and balance losses on the routers."""
    model.set_experts_implementation("dense")
    for module in model.modules():
        for name in TRAINED_BUFFERS:
            if name in module._buffers:
                module.register_parameter(name, nn.Parameter(module._buffers.pop(name)))
        if isinstance(module, Gemma4TextRouter):
            module.register_forward_hook(_keep_balance)
        if isinstance(module, Gemma4TextAttention):
            module.store_full_length_kv = (
                False  # no layer shares keys and values; so one compiled graph serves all layers
            )
    for norm in _branches(model):
        norm.register_forward_hook(_drop)
    set_dropout(model, 0.0)


def finish_training(model: Gemma4ForConditionalGeneration) -> Gemma4ForConditionalGeneration:
    """Return the trained weights in a new module of the same configuration, in bfloat16."""
    model.config.dtype = torch.bfloat16
    plain = Gemma4ForConditionalGeneration(model.config).to(torch.bfloat16)
    plain.load_state_dict({key: value.to(torch.bfloat16) for key, value in model.state_dict().items()})
    plain.generation_config = model.generation_config
    return plain


def balance_loss(model: Gemma4ForConditionalGeneration) -> Tensor:
    """Return the mean of the routers' balance losses of the last forward pass."""
    return torch.stack([layer.router.balance for layer in model.model.language_model.layers]).mean()


def to_patches(pixels: Tensor) -> Tensor:
    """Convert uint8 (B, 128, 128, 3) to float (B, 256, 192) in [0, 1], in the order of `Gemma4ImageProcessorPil`."""
    grid = pixels.float().div(255).unflatten(2, (GRID, PATCH)).unflatten(1, (GRID, PATCH))
    return grid.transpose(2, 3).flatten(3).flatten(1, 2).reshape(len(pixels), GRID * GRID, -1)


def _patch_positions(count: int, device: torch.device) -> Tensor:
    y, x = torch.meshgrid(torch.arange(GRID, device=device), torch.arange(GRID, device=device), indexing="ij")
    return torch.stack([x, y], -1).reshape(1, -1, 2).expand(count, -1, -1)


def soft_tokens(model: Gemma4ForConditionalGeneration, patches: Tensor) -> Tensor:
    """Convert patches (B, 256, 192) to soft tokens (B, 64, H): the image path for pictures without padding."""
    tower: Gemma4VisionModel = model.model.vision_tower
    positions = _patch_positions(len(patches), patches.device)
    padding = torch.zeros(positions.shape[:2], dtype=torch.bool, device=patches.device)
    hidden = tower.patch_embedder(patches, positions, padding)
    hidden = tower.encoder(hidden, attention_mask=None, pixel_position_ids=positions).last_hidden_state
    pooled, _ = tower.pooler(hidden, positions, padding, output_length=SOFT_TOKENS)
    standard = (pooled - tower.std_bias) * tower.std_scale
    return model.model.embed_vision(inputs_embeds=standard)


def attention_masks(model: Gemma4ForConditionalGeneration, ids: Tensor) -> dict[str, Tensor | None]:
    """Return masks by layer type for rows with the layout of ids (1, T), made by the model class itself."""
    kinds = (ids == model.config.image_token_id).long()
    return model.create_masks_for_generate(
        model.config,
        model.get_input_embeddings()(ids),
        None,
        None,
        torch.arange(ids.shape[1])[None].to(ids.device),
        mm_token_type_ids=kinds if kinds.any() else None,
    )


def hidden_states(model: Gemma4ForConditionalGeneration, embeds: Tensor, masks: dict[str, Tensor | None]) -> Tensor:
    """Run embeddings (B, T, H) to the last hidden states (B, T, H)."""
    positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
    text = model.model.language_model
    return text(
        inputs_embeds=embeds, attention_mask=dict(masks), position_ids=positions, use_cache=False
    ).last_hidden_state


def token_loss(model: Gemma4ForConditionalGeneration, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of targets (B, T) under the softcapped tied head; -100 is ignored."""
    cap = model.config.text_config.final_logit_softcapping
    logits = cap * torch.tanh(model.lm_head(hidden).float() / cap)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
