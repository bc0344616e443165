"""Experts as one custom op, for torch.compile. The op knows its layer by a number, as ops take no modules."""

from __future__ import annotations

import weakref
from typing import Any

import torch

_LAYERS: list[weakref.ref[Any]] = []


def add_layer(layer: Any) -> int:
    """Return the number by which `run_traced` knows a layer from now on."""
    _LAYERS.append(weakref.ref(layer))
    return len(_LAYERS) - 1


def run_traced(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, number: int) -> torch.Tensor:
    """Compute `HLWQMoEMethod.run_now` of the layer with a number, as one op."""
    found: torch.Tensor = _run_op(x, ids, weights, number)
    return found


def _run(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, number: int) -> torch.Tensor:
    layer: Any = _LAYERS[number]()
    found: torch.Tensor = layer.quant_method.run_now(layer, x, ids, weights)
    return found


_run_op = torch.library.custom_op("hlwq::vllm_experts", _run, mutates_args=())


@_run_op.register_fake
def _(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, number: int) -> torch.Tensor:
    return torch.empty_like(x)
