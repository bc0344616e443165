"""Forward passes of a model over a static cache: a prompt's, and a decode step's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..kv.static_cache import StaticCache
from ..kv.step_attention import stepping
from ..transformers_private import cache_name
from .families.gemma4 import StepLayer, step_layers
from .fused_norms import fused_norms, fusible_norms
from .step_layers import are_alike, comparing_step_layers, using_step_layers


class ModelRunner:
    """Runs a model with fused norms, and with step layers once they have been compared with its own.

    Attributes:
        model: the transformers model.
        config: of its text part.
        norms: norms that run as one kernel.
        candidates: step layers that have not been compared yet.
        layers: step layers in use.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config.get_text_config()
        self.norms = fusible_norms(model)
        self.candidates, self.layers = step_layers(model), list[StepLayer]()
        self._cache_name = cache_name(model)
        last_only = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        self._last_only = {"logits_to_keep": 1} if last_only else {}

    def prompt(self, inputs: dict[str, Any], position_ids: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        """Run prompts into an empty cache; float32 logits (batch, vocabulary) of their last tokens."""
        prepared = self.model.prepare_inputs_for_generation(
            **inputs,
            position_ids=position_ids,
            is_first_iteration=True,
            use_cache=True,
            **{self._cache_name: cache},
            **self._last_only,
        )
        with fused_norms(self.norms), using_step_layers(self.layers):
            logits: torch.Tensor = self.model(**prepared, return_dict=True).logits[:, -1].float()
        cache.position.prefilling = False
        return logits

    def step(
        self, ids: torch.Tensor, position_ids: torch.Tensor, cache: StaticCache, experts: str | None
    ) -> torch.Tensor:
        """Run one token (batch, 1) of each sequence; logits (batch, vocabulary)."""
        with stepping(self.config, experts), fused_norms(self.norms), using_step_layers(self.layers):
            out = self.model(
                input_ids=ids,
                position_ids=position_ids,
                attention_mask=cache.begin_step(),
                use_cache=True,
                return_dict=True,
                **{self._cache_name: cache},
                **self._last_only,
            )
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def try_layers(self, step: Callable[[], None]) -> bool:
        """Run `step` once, comparing step layers with the model's own; return whether they are used from now on."""
        candidates, self.candidates = self.candidates, []
        differences: list[torch.Tensor] = []
        with comparing_step_layers(candidates, differences):
            step()
        if candidates and are_alike(differences):
            self.layers = candidates
            return True
        return False
