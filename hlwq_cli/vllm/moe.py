"""Mixtures of experts of vLLM from codes, under tensor or expert parallelism."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn
from torch.nn.functional import gelu, silu
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.platforms import current_platform

from hlwq_kernels import coded_experts
from hlwq_kernels.codes import SCALE_FORMATS, PartLayout, QuantizedWeight, layout

from ..errors import UnsupportedError
from .linear import frozen, held_columns
from .moe_op import add_layer, run_traced
from .shards import Columns
from .stored import StoredMatrix, StoredTensors

if TYPE_CHECKING:
    from .config import HLWQvLLMConfig

Gate = Callable[[torch.Tensor], torch.Tensor]


def _halves(activation: Gate) -> Gate:
    def gate(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return activation(first) * second

    return gate


_GATES: dict[MoEActivation, tuple[Gate, str | None]] = {
    MoEActivation.SILU: (_halves(silu), "silu"),
    MoEActivation.GELU_TANH: (_halves(lambda x: gelu(x, approximate="tanh")), "gelu_pytorch_tanh"),
    MoEActivation.GELU: (_halves(gelu), None),
}
"""Gates, and the names by which kernels apply them themselves."""


class HLWQMoEMethod(FusedMoEMethodBase):  # type: ignore[misc]
    """How vLLM creates, loads and runs the experts of a layer from codes.

    A rank of tensor parallelism holds the blocks of `down` that its columns touch. Where its columns begin inside a
    block, its gate and up matrices get rows of scale 0 for the columns before: they give gate(0) * 0 = 0.

    Args:
        moe: vLLM's description of the layer.
        stored: the checkpoint's tensors.
        stacks: the coded gate and up matrices, and the coded down matrices.
        config: with the options, and the slots of experts outside the GPU.
        name: of the layer, for messages.
    """

    def __init__(
        self,
        moe: Any,
        stored: StoredTensors,
        stacks: tuple[StoredMatrix, StoredMatrix],
        config: HLWQvLLMConfig,
        name: str,
    ) -> None:
        super().__init__(moe)
        self.stored, self.stacks, self.config, self.name = stored, stacks, config, name
        self.slots = config.options().expert_cache_slots
        self.loaded: set[tuple[str, str]] = set()
        self.columns = Columns(0, stacks[1].columns, stored.block_size)
        if moe.activation not in _GATES or moe.has_bias or any(m.transposed for m in stacks):
            raise UnsupportedError(
                f"{name} has experts with the activation {moe.activation.value}, biases or a layout that the plugin "
                "does not run from codes.",
                "Use `hlwq export` and load the result.",
            )
        self.gate, self.gate_name = _GATES[moe.activation]

    @property
    def is_monolithic(self) -> bool:
        """Whether `apply_monolithic` is called: on the CPU, where vLLM has no routers."""
        return bool(current_platform.is_cpu())

    @property
    def topk_indices_dtype(self) -> torch.dtype:
        """Type of the ids that vLLM's routers give: that of the kernels."""
        return torch.int64

    @property
    def matrices(self) -> tuple[StoredMatrix, ...]:
        """The coded stacks."""
        return self.stacks

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors that store a stack."""
        return SCALE_FORMATS[self.stored.scale].parts

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register the parameters of the rank's codes, or make room for them in host memory."""
        gate_up, down = self.stacks
        parallel = layer.moe_config.moe_parallel_config
        inner = intermediate_size_per_partition
        expected = (parallel.tp_size * inner, hidden_size)
        if (down.columns, down.rows) != expected or (gate_up.rows // 2, gate_up.columns) != expected:
            raise UnsupportedError(
                f"{self.name} has experts of {expected[0]} x {hidden_size} in vLLM, but the checkpoint has "
                f"{down.columns} x {down.rows}.",
                "Choose a tensor parallel size that divides them.",
            )
        self.columns = Columns(parallel.tp_rank * inner, (parallel.tp_rank + 1) * inner, self.stored.block_size)
        held = self.columns.blocks * self.stored.block_size
        shapes = ((num_experts, 2 * self.columns.held, hidden_size), (num_experts, hidden_size, held))
        # a shape of whole blocks has as many bytes as one whose last block is partly filled
        named: dict[str, PartLayout] = {}
        for prefix, shape, matrix in zip(("w13", "w2"), shapes, self.stacks, strict=True):
            parts = layout(shape, matrix.bits, self.stored.block_size, self.stored.scale)
            named |= {f"{prefix}_{part}": found for part, found in parts.items()}
        if self.slots is not None:
            self.config.pools.add(layer, self, named)
            return
        for parameter, (size, dtype) in named.items():
            layer.register_parameter(parameter, frozen(torch.zeros(size, dtype=dtype)))
        for prefix, matrix in zip(("w13", "w2"), self.stacks, strict=True):
            centroids = self.stored.codebooks[matrix.bits].to(layer.w2_codes.device)
            layer.register_buffer(f"{prefix}_centroids", centroids, persistent=False)

    def load(self, layer: Any, matrix: StoredMatrix, part: str, tensor: torch.Tensor) -> None:
        """Copy the experts of this rank, and their rows and columns."""
        self.loaded.add((matrix.name, part))
        for first, local, count in _runs(layer, len(tensor)):
            own = tensor[first : first + count]
            if matrix.name == self.stacks[1].name:
                self._into(layer, f"w2_{part}")[local : local + count].copy_(
                    held_columns(own, part, matrix, self.columns)
                )
                continue
            room = self._into(layer, f"w13_{part}")[local : local + count]
            inner, lead = matrix.rows // 2, self.columns.lead
            for half in range(2):
                rows = own[:, half * inner + self.columns.start : half * inner + self.columns.stop]
                at = half * self.columns.held + lead
                room[:, at : at + rows.shape[1]].copy_(rows)

    def _into(self, layer: Any, name: str) -> torch.Tensor:
        if self.slots is not None:
            return self.config.pools.room(layer, name)
        parameter: nn.Parameter = getattr(layer, name)
        return parameter.data

    def missing(self) -> list[str]:
        """Return the stored tensors that were not loaded."""
        wanted = {(m.name, part) for m in self.stacks for part in self.parts}
        return sorted(f"{part} of {name}" for name, part in wanted - self.loaded)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Make the slots of experts outside the GPU, once for all layers."""
        if self.slots is not None:
            self.config.pools.build(self.slots, layer)
        layer.hlwq_number = add_layer(layer)

    def weights(self, layer: Any) -> tuple[QuantizedWeight, QuantizedWeight]:
        """Return the parameters as kernels take them."""
        has_base = "base" in self.parts
        first, second = (
            QuantizedWeight(
                getattr(layer, f"{prefix}_codes"),
                getattr(layer, f"{prefix}_scales"),
                getattr(layer, f"{prefix}_base") if has_base else None,
                getattr(layer, f"{prefix}_centroids"),
                self.stored.block_size,
            )
            for prefix in ("w13", "w2")
        )
        return first, second

    def run(self, layer: Any, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Compute `run_now`; as one op where torch.compile traces it, which happens on the CPU only."""
        if torch.compiler.is_compiling():
            return run_traced(x, ids, weights, layer.hlwq_number)
        return self.run_now(layer, x, ids, weights)

    def run_now(self, layer: Any, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of each token's weighted sum over its experts.

        Args:
            layer: with the codes.
            x: (tokens, hidden).
            ids: (tokens, k), over the experts of all ranks.
            weights: (tokens, k).
        """
        if layer.apply_router_weight_on_input:
            x, weights = x * weights.to(x.dtype), torch.ones_like(weights)
        if layer.expert_map is not None:
            ids = layer.expert_map[ids.long()]  # -1 for experts of other ranks, which add nothing
        if self.slots is not None:
            return self.config.pools.run(layer, x, ids, weights, self.gate, self.gate_name)
        return coded_experts(x, ids, weights, *self.weights(layer), self.gate, self.gate_name)

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run the experts that vLLM's router chose; see FusedMoEMethodBase."""
        return self.run(layer, x, topk_ids, topk_weights)

    def apply_monolithic(
        self, layer: Any, x: torch.Tensor, router_logits: torch.Tensor, input_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Choose experts and run them, on the CPU."""
        from vllm.model_executor.layers.fused_moe.cpu_fused_moe import select_experts

        weights, ids = select_experts(
            hidden_states=x,
            router_logits=router_logits,
            top_k=layer.top_k,
            use_grouped_topk=layer.use_grouped_topk,
            renormalize=layer.renormalize,
            topk_group=layer.topk_group,
            num_expert_group=layer.num_expert_group,
            custom_routing_function=layer.custom_routing_function,
            scoring_func=layer.scoring_func,
            routed_scaling_factor=layer.routed_scaling_factor,
            e_score_correction_bias=layer.e_score_correction_bias,
        )
        return self.run(layer, x, ids, weights)

    def get_fused_moe_quant_config(self, layer: Any) -> None:
        """Return None: no kernel of vLLM runs the experts."""
        return None

    def select_gemm_impl(self, prepare_finalize: Any, layer: Any) -> NoReturn:
        """Refuse what needs vLLM's own kernels for experts.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"{self.name} holds codes, which vLLM's kernels for adapters and all-to-all cannot read.",
            "Use adapters that leave the experts alone, or tensor and expert parallelism without data parallelism.",
        )


def _runs(layer: Any, experts: int) -> list[tuple[int, int, int]]:
    """Return (first expert, its local number, how many) of the runs of experts that this rank holds."""
    found: list[tuple[int, int, int]] = []
    for expert in range(experts):
        local = layer._map_global_expert_id_to_local_expert_id(expert)
        if local < 0:
            continue
        if found and (expert, local) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((expert, local, 1))
    return found
