"""A MoE layer for one token in bf16, in the loop order of our GEMV kernels: the peer of the kernels for codes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from hlwq_kernels.common import DTYPE_IDS, CudaKernel, Launch, Macros, num_sms
from hlwq_kernels.linear import Shape, lay_out

SOURCE = str(Path(__file__).with_suffix(".cu"))
_NAMES = {1: "each_in_bf16", 2: "sum_in_bf16"}
_KERNELS = {kind: CudaKernel(SOURCE, name=name) for kind, name in _NAMES.items()}
_BF16, _FLOAT32 = DTYPE_IDS[torch.bfloat16], DTYPE_IDS[torch.float32]


class Layout(NamedTuple):
    """The launch configuration of a kernel.

    Attributes:
        lane: columns per thread.
        ahead: see `Shape`.
        batch: see `Shape`.
        threads: maximum threads per CTA.
        resident: threads per multiprocessor.
    """

    lane: int
    ahead: int
    batch: int
    threads: int
    resident: int


LAYOUTS = [
    Layout(lane, *rhythm, threads, resident)
    for lane, rhythm, threads, resident in itertools.product(
        (8, 16, 32), ((2, 4), (2, 6), (4, 4)), (448, 704), (896, 1408)
    )
]
"""Layouts that `fastest` tries. One that needs more registers than a thread has spills, and is slow."""


def macros(kind: int, layout: Layout, shape: Shape, columns: int, top_k: int) -> Macros:
    """Return the macros of kind 1 (each expert times the token) or kind 2 (the gated sum over experts)."""
    input_type, output_type = (_FLOAT32, _BF16) if kind == 2 else (_BF16, _FLOAT32)
    return (
        ("N", 64), ("INPUT", input_type), ("OUTPUT", output_type), ("GATE", 2 if kind == 2 else 0),
        ("COLUMNS", columns), ("LANE", layout.lane), ("AHEAD", layout.ahead), ("BATCH", layout.batch),
        ("TEAMS", shape.teams), ("THREADS", shape.threads), ("CTAS", shape.ctas), ("TOP_K", top_k),
        ("EXPERTS", kind), ("NAME", _NAMES[kind]),
    )  # fmt: skip


def launch(
    kind: int,
    layout: Layout,
    x: torch.Tensor,
    weights: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
) -> tuple[Launch, torch.Tensor]:
    """Prepare a launch.

    Args:
        kind: see `macros`.
        layout: a layout whose `lane` divides the columns.
        x: kind 1: bfloat16 (1, columns); kind 2: float32 (k, 2 * columns), gate and up; the kernel applies tanh GELU
            to the gate, the first half.
        weights: bfloat16 (experts, rows, columns).
        topk_ids: int64 (1, k).
        topk_weights: float32 (1, k).

    Returns:
        The launch, and its output: kind 1 float32 (k, rows), kind 2 bfloat16 (1, rows).
    """
    (_, rows, columns), top_k = weights.shape, topk_ids.shape[1]
    slices = columns // layout.lane * (top_k if kind == 2 else 1)
    at_once = top_k if kind == 1 else 1
    shape = lay_out(rows, slices, at_once, num_sms(x.device), layout.threads, layout.resident)
    y = x.new_empty(at_once, rows, dtype=torch.float32 if kind == 1 else torch.bfloat16)
    grid = (shape.grid, top_k, 1) if kind == 1 else (shape.grid, 1)
    defined = macros(kind, layout, shape, columns, top_k)
    return _KERNELS[kind].prepare(
        x.device, defined, grid, shape.threads, x, weights, rows, topk_ids, topk_weights, y, overlap=True
    ), y


Timer = Callable[[list[Callable[[], object]]], float]


def fastest(
    kind: int,
    x: torch.Tensor,
    layers: list[torch.Tensor],
    all_topk_ids: list[torch.Tensor],
    topk_weights: torch.Tensor,
    seconds: Timer,
) -> Layout:
    """Try all layouts and return the fastest."""

    def time(layout: Layout) -> float:
        if layers[0].shape[2] % layout.lane:
            return float("inf")
        pairs = [(layers[i % len(layers)], topk_ids) for i, topk_ids in enumerate(all_topk_ids)]
        return seconds([launch(kind, layout, x, weights, topk_ids, topk_weights)[0] for weights, topk_ids in pairs])

    return min(LAYOUTS, key=time)
