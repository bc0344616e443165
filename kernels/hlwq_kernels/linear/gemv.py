"""Products of one token, or of few with each of their experts, with coded weights on a CUDA device: linear/gemv.cu."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ..codes import (
    SHARED_BYTES,
    QuantizedWeight,
    ceil_div,
    kernel_macros,
    table_bytes,
    table_copies,
    to_kernel_layout,
    weight_arguments,
)
from ..common import DTYPE_IDS, CudaKernel, Macros, num_sms

_NAMES = ("gemv", "moe_gemv_up", "moe_gemv_down")
_KERNELS = [CudaKernel("linear/gemv.cu", name=name) for name in _NAMES]
_GATES = {None: 0, "silu": 1, "gelu_pytorch_tanh": 2}
_SLICE = 32
_BATCH = 4
"""Rows of a thread to a barrier: BATCH in linear/gemv.cu."""
_THREADS, _MAX_THREADS, _RESIDENT = 448, 1024, 896

GATES = frozenset(name for name in _GATES if name)
"""Gates that the kernels apply themselves."""


def supports_gemv(weight: QuantizedWeight) -> bool:
    """Whether `gemv` takes a weight: rows that are not too long."""
    return weight.padded // _SLICE <= _THREADS


def supports_moe_gemv_down(experts: QuantizedWeight, k: int) -> bool:
    """Whether `moe_gemv_down` takes k experts a token: a row of each, and its activations, fit a CTA."""
    slices = k * experts.padded // _SLICE
    other_bytes = _other_shared_bytes(experts, slices, Shape(1, ceil_div(slices, 32) * 32, 1, 1))
    return slices <= _MAX_THREADS and other_bytes + table_bytes(experts.bits, 1) <= SHARED_BYTES


def gemv(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, gate: str | None, y: torch.Tensor
) -> None:
    """Put x W^T + bias into y (1, out), x being (1, in), or with a gate as for `moe_gemv_down`."""
    _launch(x, weight, y, bias=bias, gate=gate)


def moe_gemv_up(x: torch.Tensor, experts: QuantizedWeight, topk_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Each token times each of the experts that it chose.

    Args:
        x: (tokens, in).
        experts: coded (experts, out, in).
        topk_ids: int64 (tokens, k); numbers that are no expert's give zeros.
        dtype: of the result.

    Returns:
        (tokens * k, out).
    """
    y = x.new_empty(topk_ids.numel(), experts.codes.shape[1], dtype=dtype)
    _launch(x, experts, y, kind=1, topk_ids=topk_ids)
    return y


def moe_gemv_down(
    x: torch.Tensor,
    experts: QuantizedWeight,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    gate: str | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """For each token the sum of rows of x, gated, times the experts that it chose, weighed.

    Args:
        x: (tokens * k, in); with a gate (tokens * k, 2 * in), of which gate(first half) * second half counts.
        experts: coded (experts, out, in).
        topk_ids: int64 (tokens, k).
        topk_weights: float32 (tokens, k), the weights.
        gate: None or one of GATES.
        dtype: of the result.

    Returns:
        (tokens, out).
    """
    y = x.new_empty(len(topk_ids), experts.codes.shape[1], dtype=dtype)
    _launch(x, experts, y, kind=2, topk_ids=topk_ids, topk_weights=topk_weights, gate=gate)
    return y


class Shape(NamedTuple):
    """How linear/gemv.cu is laid out.

    Attributes:
        teams: rows that a CTA takes at once.
        threads: of a CTA.
        ctas: on a multiprocessor.
        grid: CTAs along the rows.
    """

    teams: int
    threads: int
    ctas: int
    grid: int


def _launch(
    x: torch.Tensor,
    weight: QuantizedWeight,
    y: torch.Tensor,
    *,
    kind: int = 0,
    bias: torch.Tensor | None = None,
    topk_ids: torch.Tensor | None = None,
    topk_weights: torch.Tensor | None = None,
    gate: str | None = None,
) -> None:
    """Kinds are the kernel's EXPERTS, and have names of their own."""
    if not y.numel():
        return
    x, weight = x.contiguous(), to_kernel_layout(weight, kind > 0)
    top_k = 1 if topk_ids is None else topk_ids.shape[1]
    tokens = 1 if topk_ids is None else len(topk_ids)
    slices = weight.padded // _SLICE * (top_k if kind == 2 else 1)
    at_once = tokens * (top_k if kind == 1 else 1)
    shape = lay_out(y.shape[1], slices, at_once, num_sms(y.device))
    copies = table_copies(weight.bits, _other_shared_bytes(weight, slices, shape))
    macros: Macros = (
        *kernel_macros(weight, y, shape.threads, copies), ("INPUT", DTYPE_IDS[x.dtype]), ("GATE", _GATES[gate]),
        ("COLUMNS", weight.padded), ("TEAMS", shape.teams), ("CTAS", shape.ctas), ("EXPERTS", kind), ("TOP_K", top_k),
        ("NAME", _NAMES[kind]),
    )  # fmt: skip
    grid = (shape.grid, top_k, tokens) if kind == 1 else (shape.grid, tokens)
    _KERNELS[kind].launch(
        y.device,
        macros,
        grid,
        shape.threads,
        x,
        x.shape[1] // (2 if gate else 1),
        *weight_arguments(weight, y),
        bias,
        y.shape[1],
        topk_ids,
        topk_weights,
        weight.codes.shape[0] if kind else 1,
        *_strides(weight, kind),
        y,
        overlap=True,
    )


def _other_shared_bytes(weight: QuantizedWeight, slices: int, shape: Shape) -> int:
    """Bytes of shared memory besides the table, most of them activations that make room for sums."""
    x_blocks = slices * _SLICE // weight.block_size
    rest = max(2 * _SLICE * slices, 8 * _BATCH * shape.threads)
    return 4 * (256 + x_blocks) + 16 * _BATCH * shape.teams + rest


def _strides(weight: QuantizedWeight, kind: int) -> tuple[int, int, int]:
    """Bytes from one expert's codes, scales and base to those of the next."""
    if not kind:
        return 0, 0, 0
    codes, scales, base = (0 if t is None else t.stride(0) * t.element_size() for t in weight[:3])
    return codes, scales, base


@lru_cache(maxsize=None)
def lay_out(rows: int, slices: int, at_once: int, count: int, most: int = _THREADS, resident: int = _RESIDENT) -> Shape:
    """The layout that leaves the fewest threads idle: beyond the last slice, and in the last round.

    A thread for each of a CTA's rows between barriers looks after what belongs to the row, so there are as many.

    Args:
        rows: of the result.
        slices: threads a row.
        at_once: grids of CTAs that run side by side.
        count: multiprocessors of the device.
        most: threads of a CTA, unless one row needs more.
        resident: threads of a multiprocessor.
    """

    def laid_out(teams: int) -> tuple[float, Shape]:
        threads = ceil_div(teams * slices, 32) * 32
        ctas = max(1, min(4, resident // threads))
        grid = max(1, min(ceil_div(rows, teams), count * ctas // at_once))
        rounds = ceil_div(rows, teams * grid)
        used = rows * slices / (rounds * grid * threads) * min(1.0, grid * at_once / (count * ctas))
        return used, Shape(teams, threads, ctas, grid)

    every = (laid_out(teams) for teams in range(1, max(1, most // slices) + 1))
    return max(each for each in every if _BATCH * each[1].teams <= each[1].threads)[1]
