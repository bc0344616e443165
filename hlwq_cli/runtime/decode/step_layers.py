"""Running decoder layers by functions of ours, after comparing these with the layers of transformers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from ..transformers_private import replaced_forwards

logger = logging.getLogger("hlwq")
MAX_DIFFERENCE = 0.02
"""Relative difference from transformers' layer that the median layer may have: rounding, not another formula."""


class StepLayer(Protocol):
    """A faster forward function of one decoder layer."""

    layer: Any

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute what the layer's own forward does: (batch, tokens, hidden) to the same shape."""


@contextmanager
def using_step_layers(layers: Sequence[StepLayer]) -> Iterator[None]:
    """Run the model's layers by these functions inside this context."""
    with replaced_forwards({step.layer: step.forward for step in layers}):
        yield


@contextmanager
def comparing_step_layers(layers: Sequence[StepLayer], differences: list[torch.Tensor]) -> Iterator[None]:
    """Run both versions of each layer inside this context; relative differences are appended to `differences`."""
    with replaced_forwards({step.layer: _comparing(step, differences) for step in layers}):
        yield


def _comparing(step: StepLayer, differences: list[torch.Tensor]) -> Any:
    own = step.layer.forward

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        found = step.forward(hidden_states.clone(), *args, **kwargs).float()
        out: torch.Tensor = own(hidden_states, *args, **kwargs)
        differences.append((found - out.float()).norm() / out.float().norm())
        return out

    return forward


def are_alike(differences: list[torch.Tensor]) -> bool:
    """Return whether the median layer computes what transformers' does; one token may tip a single layer's router."""
    median = float(torch.stack(differences).nan_to_num(torch.inf).median())
    if median > MAX_DIFFERENCE:
        logger.warning("Running the layers of transformers, which is slower: our decode steps differ by %.1e", median)
    return median <= MAX_DIFFERENCE
