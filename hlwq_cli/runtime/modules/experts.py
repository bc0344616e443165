"""Stacked experts that hold codes, with the gate and activation of the class they replace."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from hlwq_kernels.codes import QuantizedWeight
from hlwq_kernels.moe import coded_experts
from hlwq_kernels.offload import OffloadedLayer, RecordLayout

from ..transformers_private import change_class, has_default_gate, skip_initialization
from .format import CodedModule, QuantFormat

PARAMETERS = ("gate_up_proj", "down_proj")


class HLWQExperts(CodedModule):
    """The coded part of an experts module; `code_experts` mixes it into the original class.

    Buffers such as `codes_gate_up_proj` are named as on disk. If execution is dense, the decoded parameters get their
    own names back, and the original class runs, with its choice of experts implementation. Offloaded experts have a
    layout instead of buffers; `offload_experts` supplies the rest.
    """

    if TYPE_CHECKING:
        quant_format: QuantFormat
        bits: dict[str, int]
        columns: dict[str, int]
        dense: bool
        gate_name: str | None
        expert_count: int
        layout: RecordLayout | None
        offloaded: OffloadedLayer | None
        _apply_gate: Callable[[torch.Tensor], torch.Tensor]

    def decoded(self, parameter: str) -> torch.Tensor:
        """Return a decoded parameter (experts, out, in) in the module's dtype."""
        codes, scales, base = self._parts(parameter)
        weight = self.quant_format.decode(codes, scales, base, self.bits[parameter], self.columns[parameter])
        return weight.to(self.compute_dtype)

    def materialize(self) -> None:
        """Decode the parameters now, if the module's execution is dense on its device."""
        if self.layout is not None:
            return
        device = self._parts(PARAMETERS[0])[0].device
        if not self.dense and self.quant_format.dense(device):
            for parameter in PARAMETERS:
                self.register_buffer(parameter, self.decoded(parameter), persistent=False)
            self.dense = True

    def _parts(self, parameter: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        codes, scales = self._buffers[f"codes_{parameter}"], self._buffers[f"scales_{parameter}"]
        assert codes is not None
        assert scales is not None
        return codes, scales, self._buffers.get(f"base_{parameter}")

    def _coded(self, parameter: str) -> QuantizedWeight:
        codes, scales, base = self._parts(parameter)
        centroids = self.quant_format.centroids(self.bits[parameter], codes.device)
        return QuantizedWeight(codes, scales, base, centroids, self.quant_format.block_size)

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
_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _coded_class(original: type[nn.Module]) -> type[nn.Module]:
    if original not in _classes:
        bases = (HLWQExperts, original)
        _classes[original] = type(f"HLWQ{original.__name__}", bases, {"__doc__": HLWQExperts.__doc__})
    return _classes[original]


def code_experts(module: nn.Module, bits: dict[str, int], quant_format: QuantFormat, offloaded: bool = False) -> None:
    """Make an experts module on the meta device hold codes instead of its two stacked parameters, in place.

    If they are offloaded, they get a layout of their records and no buffers.
    """
    shapes = {name: tuple(getattr(module, name).shape) for name in PARAMETERS}
    dtype = getattr(module, PARAMETERS[0]).dtype
    parts = {name: quant_format.empty_parts(shapes[name], bits[name]) for name in PARAMETERS}
    for name in PARAMETERS:
        delattr(module, name)
        for part, tensor in () if offloaded else parts[name].items():
            module.register_buffer(f"{part}_{name}", tensor)
    change_class(module, _coded_class(type(module)))
    assert isinstance(module, HLWQExperts)
    module.quant_format, module.bits, module.compute_dtype, module.dense = quant_format, dict(bits), dtype, False
    skip_initialization(module)
    module.gate_name = _gate_name(module)
    module.columns = {name: shape[-1] for name, shape in shapes.items()}
    gate_up, down = ([(t.shape[1:], t.dtype) for t in parts[name].values()] for name in PARAMETERS)
    module.layout, module.offloaded = RecordLayout.of(gate_up, down) if offloaded else None, None
    module.expert_count = shapes[PARAMETERS[0]][0]
