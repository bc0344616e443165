"""What a model takes on a GPU apart from its experts, by cause, and how many experts fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hlwq_kernels.codes import ceil_div
from hlwq_kernels.offload import MAX_BATCH_EXPERTS

from ...errors import UsageError
from ...sizes import format_size
from ..modules.experts import HLWQExperts

CONTEXT_BYTES = 600 * 10**6
"""Taken by CUDA itself: context, kernels, libraries."""
SPARE_BYTES = 256 * 2**20
"""Taken by the allocator, the workspaces of libraries and captured graphs, apart from tensors."""
TOKENS = 2048
"""Tokens of prompt and answer that keys, values and activations are counted for."""
_STATES = 16
"""Hidden states per token that exist at once, at most, while a prompt is read."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the GPU.

    Attributes:
        weights: all tensors of the model except experts.
        cache: keys and values of TOKENS tokens.
        workspace: activations of a prompt of TOKENS tokens, and weights that are decoded for it.
        scratch: records that all layers share.
        slot: records of one slot in every layer.
        experts: of a layer, at most.
    """

    weights: int
    cache: int
    workspace: int
    scratch: int
    slot: int
    experts: int

    @classmethod
    def of(cls, model: Any, chosen: int) -> MemoryEstimate:
        """Estimate a model with offloaded experts, also on the meta device; each token chooses `chosen` experts."""
        modules = [m for m in model.modules() if isinstance(m, HLWQExperts) and m.layout is not None]
        layouts = {m.layout for m in modules if m.layout is not None}
        shared = sum(layout.bytes for layout in layouts) * (chosen + 2 * MAX_BATCH_EXPERTS)
        return cls(
            weights=_weights(model),
            cache=cache_bytes(model, TOKENS),
            workspace=_workspace(model, modules, chosen),
            scratch=shared,
            slot=sum(m.layout.bytes for m in modules if m.layout is not None),
            experts=max(m.expert_count for m in modules),
        )

    @property
    def others(self) -> int:
        """Everything except the slots."""
        return CONTEXT_BYTES + self.weights + self.cache + self.workspace + self.scratch

    def slots(self, budget: int) -> int:
        """Return how many slots of each layer fit into `budget` bytes, at most one for each expert.

        Raises:
            UsageError: not even one slot fits.
        """
        found = (budget - self.others) // self.slot
        if found < 1:
            raise UsageError(
                f"This model does not fit into {format_size(budget)} of GPU memory: one expert of each layer takes "
                f"{format_size(self.slot)}, everything else {format_size(self.others)}.",
                f"Give at least {ceil_div(self.others + self.slot, 10**7) / 100:.2f}GB.",
            )
        return min(found, self.experts)

    def line(self, slots: int) -> str:
        """Describe what takes the memory, in one sentence."""
        return (
            f"On the GPU: {format_size(self.slot * slots)} of slots, {format_size(self.weights)} of other weights, "
            f"{format_size(self.cache)} of keys and values for {TOKENS:,} tokens, "
            f"{format_size(self.workspace + self.scratch)} of work space and {format_size(CONTEXT_BYTES)} for CUDA."
        )


def _weights(model: nn.Module) -> int:
    """Return bytes of parameters and buffers; tied ones count once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def cache_bytes(model: Any, tokens: int) -> int:
    """Return bytes of keys and values of `tokens` tokens in the model's dtype; a sliding layer stores its window."""
    config = model.config.get_text_config()
    types = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None) or tokens
    total = 0
    for module in model.modules():
        keys = getattr(module, "k_proj", None)
        if keys is None or not isinstance(getattr(module, "config", None), type(config)):
            continue
        values = getattr(module, "v_proj", None) or keys
        layer = getattr(module, "layer_idx", len(types))
        sliding = layer < len(types) and types[layer] == "sliding_attention"
        held = min(window, tokens) if sliding else tokens
        total += (keys.out_features + values.out_features) * model.dtype.itemsize * held
    return int(total)


def _workspace(model: Any, experts: list[HLWQExperts], chosen: int) -> int:
    config, size = model.config.get_text_config(), model.dtype.itemsize
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    widest = max(m.out_features for m in linears if m.out_features != config.vocab_size)
    decoded = max(m.in_features * m.out_features for m in linears if m.out_features != config.vocab_size)
    wave = max(m.columns["gate_up_proj"] * m.columns["down_proj"] for m in experts) * 2 * MAX_BATCH_EXPERTS
    token = (chosen + _STATES) * config.hidden_size * size + 3 * widest * size
    logits = 2 * config.vocab_size * torch.float32.itemsize
    return int(TOKENS * token + max(decoded, wave) * size + logits + SPARE_BYTES)
