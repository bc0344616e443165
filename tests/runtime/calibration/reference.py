"""Moments by hooks on the modules of a whole model in float64: the reference of the calibration stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from hlwq_cli.checkpoint.plan import is_conv1d

Sums = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""By parameter: sum of x x' (matrices, inputs, inputs), and tokens of each matrix; both float64."""


def load(folder: Path, name: str) -> Any:
    """Load a model in float64. Its experts run one by one, as grouped products have no float64."""
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")


def moments(model: Any, inputs: Sequence[dict[str, torch.Tensor]]) -> Sums:
    """Run a model over inputs, and sum the inputs of its linear layers and experts. Tied weights share a sum."""
    sums: Sums = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) or is_conv1d(module):
            name = names[id(module.weight)]
            module.register_forward_pre_hook(lambda m, args, name=name: _add(sums, name, 1, 0, args[0]))
        elif hasattr(module, "gate_up_proj") and hasattr(module, "is_transposed"):
            module.register_forward_pre_hook(
                lambda m, args, kwargs, path=path: _add_experts(sums, path, m, *args, *kwargs.values()),
                with_kwargs=True,
            )
    with torch.no_grad():
        for each in inputs:
            model(
                **{
                    name: value.to(torch.float64) if value.is_floating_point() else value
                    for name, value in each.items()
                }
            )
    return sums


def _add(sums: Sums, name: str, matrices: int, matrix: int, x: torch.Tensor) -> None:
    rows = x.reshape(-1, x.shape[-1])
    if name not in sums:
        sums[name] = (torch.zeros(matrices, *[rows.shape[1]] * 2).double(), torch.zeros(matrices).double())
    sums[name][0][matrix] += rows.T.double() @ rows.double()
    sums[name][1][matrix] += len(rows)


def _add_experts(
    sums: Sums, path: str, module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> None:
    """Add the tokens routed to each expert, and what its gate makes of them."""
    gate_up = module.gate_up_proj if module.is_transposed else module.gate_up_proj.mT
    for e in range(len(gate_up)):
        rows = hidden[(index == e).any(dim=-1)]
        if not len(rows):
            continue
        _add(sums, f"{path}.gate_up_proj", len(gate_up), e, rows)
        up = rows @ gate_up[e] + (module.gate_up_proj_bias[e] if module.has_bias else 0)
        _add(sums, f"{path}.down_proj", len(gate_up), e, module._apply_gate(up))
