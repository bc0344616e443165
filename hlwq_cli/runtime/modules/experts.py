"""Stacked experts that hold codes, with the gate and activation of the class they replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from hlwq_kernels.moe import coded_experts
from hlwq_kernels.offload import OffloadedLayer, RecordLayout

from ..transformers_private import has_default_gate, has_usual_layout
from .format import QuantFormat
from .names import PARAMETERS
from .parameters import HLWQModule, ParameterCodes, code_parameters


class HLWQExperts(HLWQModule):
    """The coded part of an experts module; `code_experts` mixes it into the original class.

    If execution is dense, the original class runs, with its choice of experts implementation. Offloaded experts have a
    layout instead of buffers; `offload_experts` supplies the rest.
    """

    if TYPE_CHECKING:
        gate_name: str | None
        expert_count: int
        layout: RecordLayout | None
        offloaded: OffloadedLayer | None
        _apply_gate: Callable[[torch.Tensor], torch.Tensor]

    def materialize(self) -> None:
        """Decode the parameters now, if the module's execution is dense on its device."""
        if self.layout is None:
            super().materialize()

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run (tokens, hidden) through the experts of indices (tokens, k), and sum them with weights (tokens, k)."""
        if self.dense:
            result: torch.Tensor = super().forward(hidden_states, top_k_index, top_k_weights)
            return result
        if self.offloaded is not None:
            return self.offloaded.run(hidden_states, top_k_index, top_k_weights, self._apply_gate, self.gate_name)
        gate_up, down = (self._coded(parameter) for parameter in PARAMETERS)
        return coded_experts(hidden_states, top_k_index, top_k_weights, gate_up, down, self._apply_gate, self.gate_name)


def _gate_name(module: nn.Module) -> str | None:
    """Return the activation that gates the experts, if the gate is the default and the kernels know the activation."""
    return gate_name_of(getattr(module, "act_fn", None)) if has_default_gate(module) else None


def gate_name_of(activation: object) -> str | None:
    """Return the kernels' name for an activation of transformers; None if they do not support it."""
    return _GATES.get(type(activation).__name__)


_GATES = {"SiLU": "silu", "SiLUActivation": "silu", "GELUTanh": "gelu_pytorch_tanh"}


def runs_codes(module: nn.Module, coded: Mapping[str, ParameterCodes]) -> bool:
    """Return whether kernels can multiply by a module's codes: gated experts in transformers' usual layout."""
    return set(coded) == set(PARAMETERS) == set(module._parameters) and has_usual_layout(module)


def code_experts(
    module: nn.Module, coded: Mapping[str, ParameterCodes], quant_format: QuantFormat, offloaded: bool = False
) -> None:
    """Make an experts module on the meta device, for which `runs_codes`, hold codes in place.

    If they are offloaded, they get a layout of their records and no buffers.
    """
    in_order = {name: coded[name] for name in PARAMETERS}
    parts = code_parameters(module, in_order, quant_format, HLWQExperts, has_buffers=not offloaded)
    assert isinstance(module, HLWQExperts)
    module.gate_name = _gate_name(module)
    gate_up, down = ([(t.shape[1:], t.dtype) for t in parts[name].values()] for name in PARAMETERS)
    module.layout, module.offloaded = RecordLayout.of(gate_up, down) if offloaded else None, None
    module.expert_count = parts[PARAMETERS[0]]["codes"].shape[0]
