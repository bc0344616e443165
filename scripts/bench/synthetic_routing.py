"""Precomputed expert choices on the device, for models with random weights. Used by offload.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch

STICKY_PROBABILITY, NUM_STEPS = 0.45, 1021


def synthetic_topk_ids(kind: str, layers: int, experts: int, k: int) -> torch.Tensor:
    """Return int64 (layers, NUM_STEPS, k): the experts of each layer at each step."""
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(layers, NUM_STEPS, experts, generator=generator).argsort(-1)[..., :k]
    if kind == "sticky":
        for step in range(1, NUM_STEPS):
            for layer in range(layers):
                before = table[layer, step - 1]
                kept = before[torch.rand(k, generator=generator) < STICKY_PROBABILITY].tolist()
                others = [e for e in torch.randperm(experts, generator=generator).tolist() if e not in before.tolist()]
                table[layer, step] = torch.tensor((kept + others)[:k])
    return table


def synthetic_predictions(table: torch.Tensor, experts: int, recall: float) -> torch.Tensor:
    """Return what an earlier layer would predict: each expert of `table` with probability `recall`, else another.

    Returns:
        int64 of the shape of `table`; the order within a step is random.
    """
    generator = torch.Generator().manual_seed(1)
    others = (table + torch.randint(1, experts, table.shape, generator=generator)) % experts
    kept = torch.rand(table.shape, generator=generator) < recall
    order = torch.rand(table.shape, generator=generator).argsort(-1)
    return torch.where(kept, table, others).gather(-1, order)


@contextmanager
def override_routing(layers: list[Any], table: torch.Tensor | None, predictions: torch.Tensor | None) -> Iterator[None]:
    """Inside this context, single tokens use the experts and predictions of the tables.

    The step is counted on the device, so that a CUDA graph can replay it. Does nothing if `table` is None.
    """
    if table is None:
        yield
        return
    step = torch.zeros(1, dtype=torch.int64, device=table.device)

    def forward(number: int, module: Any, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            if number == 0:
                step.add_(1).remainder_(NUM_STEPS)
            index = table[number].index_select(0, step)
        y: torch.Tensor = type(module).forward(module, x, index, weights)
        return y

    def prefetch(number: int, layer: Any, x: torch.Tensor, before: Any) -> None:
        assert predictions is not None
        type(layer).prefetch(layer, lambda _: predictions[number].index_select(0, step), x, before)

    for number, layer in enumerate(layers):
        layer.forward = MethodType(lambda module, *args, number=number: forward(number, module, *args), layer)
        if layer.offloaded is not None:
            layer.offloaded.prefetch = MethodType(
                lambda layer, predict, *args, number=number: prefetch(number, layer, *args), layer.offloaded
            )
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]
            if layer.offloaded is not None:
                del layer.offloaded.__dict__["prefetch"]
