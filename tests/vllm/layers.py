"""Coded tensors and layers of vLLM for any rank, without an engine."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.linear import QKVParallelLinear

from hlwq_cli.codec import Coded, Scheme, decode, encode, lloyd_max
from hlwq_cli.vllm.config import Options
from hlwq_cli.vllm.offload import SlotPools
from hlwq_cli.vllm.stored import StoredMatrix

CODEBOOKS = {bits: torch.tensor(lloyd_max(bits)) for bits in range(2, 9)}


def stored(scale: str = "log8", block_size: int = 64) -> Any:
    """What `StoredTensors` says of a checkpoint as a whole."""
    return SimpleNamespace(block_size=block_size, scale=scale, codebooks=CODEBOOKS)


def coded(name: str, shape: tuple[int, ...], bits: int, like: Any) -> tuple[StoredMatrix, Coded, torch.Tensor]:
    """Random weights: their record, their codes, and what they decode to."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(sum(name.encode()))) * 0.1
    found, _ = encode(weight, Scheme(bits, like.block_size, like.scale, False))
    return StoredMatrix(name, shape, bits), found, decode(found)


def parts_of(found: Coded) -> dict[str, torch.Tensor]:
    parts = {"codes": found.codes, "scales": found.scales, "base": found.base}
    return {name: tensor for name, tensor in parts.items() if tensor is not None}


def linear(rank: int = 0, sizes: Sequence[int] = ()) -> Any:
    """A linear layer as vLLM hands it to `create_weights`."""
    layer: Any = nn.Module()
    layer.tp_rank, layer.output_sizes = rank, list(sizes)
    return layer


def heads_linear(rank: int, ranks: int, heads: int, key_heads: int, size: int) -> Any:
    """A merged layer of queries, keys and values, whose key heads ranks may share."""
    layer: Any = QKVParallelLinear.__new__(QKVParallelLinear)
    nn.Module.__init__(layer)
    layer.tp_rank, layer.total_num_heads, layer.total_num_kv_heads = rank, heads, key_heads
    layer.head_size = layer.v_head_size = size
    layer.num_heads, layer.num_kv_heads = heads // ranks, max(1, key_heads // ranks)
    layer.num_kv_head_replicas = max(1, ranks // key_heads)
    return layer


def experts(rank: int, ranks: int, count: int, top_k: int, parallel: str, slots: int | None = None) -> Any:
    """An experts layer of a rank of tensor (`tp`) or expert (`ep`) parallelism, and its configuration."""
    layer: Any = nn.Module()
    tp, ep = (ranks, 1) if parallel == "tp" else (1, ranks)
    layer.moe_config = SimpleNamespace(
        moe_parallel_config=SimpleNamespace(tp_size=tp, tp_rank=rank if tp > 1 else 0, ep_size=ep),
        activation=MoEActivation.SILU, has_bias=False, experts_per_token=top_k, num_experts=count,
    )  # fmt: skip
    own = range(rank * count // ep, (rank + 1) * count // ep) if ep > 1 else range(count)
    layer.expert_map = None
    if ep > 1:
        layer.expert_map = torch.tensor([e - own.start if e in own else -1 for e in range(count)])
    layer._map_global_expert_id_to_local_expert_id = lambda e: e - own.start if e in own else -1
    layer.apply_router_weight_on_input, layer.num_local = False, len(own)
    return layer, SimpleNamespace(options=lambda: Options("coded", slots), pools=SlotPools())
