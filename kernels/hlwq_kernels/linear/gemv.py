"""Products of one token, or of a few tokens with each of their experts, with coded weights: linear/gemv.cu."""

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
GATE_IDS = {None: 0, "silu": 1, "gelu_pytorch_tanh": 2}
"""Values of the macro GATE in common/hadamard.cuh."""
_SLICE = 32
"""Columns of a thread: LANE_CODES in common/dequant.cuh."""
_BATCH = 4
"""Rows of a thread per barrier: BATCH in linear/gemv.cu."""
_THREADS = 448
"""Threads of a CTA at most, unless one row needs more. Two CTAs of 448 instead of 352 threads, with other changes, took
262144 x 2816 from 228 to 207 us (one H100, 2026-11-25, scripts/bench/linear.py). One CTA of 704 was faster alone and
slower in a whole model (2026-11-28). Both are in docs/log.md."""
_MAX_THREADS = 1024
"""Threads of a CTA that CUDA allows; they bound the columns of k experts."""
_RESIDENT = 896
"""Threads per multiprocessor: two CTAs of 448. With 72 registers each they fill the register file of an H100."""

GATES = frozenset(name for name in GATE_IDS if name)
"""Gates that the kernels apply themselves."""


def supports_gemv(weight: QuantizedWeight) -> bool:
    """Return whether `gemv` supports a weight: its rows must not be too long."""
    return weight.padded // _SLICE <= _THREADS


def supports_moe_gemv_down(experts: QuantizedWeight, k: int) -> bool:
    """Return whether `moe_gemv_down` supports k experts per token: a row of each and its activations fit in a CTA."""
    slices = k * experts.padded // _SLICE
    other_bytes = _other_shared_bytes(experts, slices, Shape(1, ceil_div(slices, 32) * 32, 1, 1))
    return slices <= _MAX_THREADS and other_bytes + table_bytes(experts.bits, 1) <= SHARED_BYTES


def gemv(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, gate: str | None, y: torch.Tensor
) -> None:
    """Write x W^T + bias to y (1, out). x is (1, in), or (1, 2 * in) with a gate as for `moe_gemv_down`."""
    _launch(x, weight, y, bias=bias, gate=gate)


def moe_gemv_up(x: torch.Tensor, experts: QuantizedWeight, topk_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Multiply each token by each of its experts.

    Args:
        x: (tokens, in).
        experts: coded (experts, out, in).
        topk_ids: int64 (tokens, k); an id that is not an expert's gives zeros.
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
    """Multiply the k rows of each token, gated, by its experts, and return the weighted sums.

    Args:
        x: (tokens * k, in); with a gate (tokens * k, 2 * in), and gate(first half) * second half is multiplied.
        experts: coded (experts, out, in).
        topk_ids: int64 (tokens, k).
        topk_weights: float32 (tokens, k).
        gate: None or one of GATES.
        dtype: of the result.

    Returns:
        (tokens, out).
    """
    y = x.new_empty(len(topk_ids), experts.codes.shape[1], dtype=dtype)
    _launch(x, experts, y, kind=2, topk_ids=topk_ids, topk_weights=topk_weights, gate=gate)
    return y


class Shape(NamedTuple):
    """The layout of a launch of linear/gemv.cu.

    Attributes:
        teams: rows that a CTA computes at once.
        threads: of a CTA.
        ctas: CTAs per multiprocessor.
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
    """Launch the kernel. `kind` is its macro EXPERTS, which also selects its name."""
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
        *kernel_macros(weight, y, shape.threads, copies), ("INPUT", DTYPE_IDS[x.dtype]), ("GATE", GATE_IDS[gate]),
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
    """Return the bytes of shared memory besides the table: mostly activations, whose place sums take later."""
    x_blocks = slices * _SLICE // weight.block_size
    rest = max(2 * _SLICE * slices, 8 * _BATCH * shape.threads)
    return 4 * (256 + x_blocks) + 16 * _BATCH * shape.teams + rest


def _strides(weight: QuantizedWeight, kind: int) -> tuple[int, int, int]:
    """Return the bytes from one expert's codes, scales and base to those of the next."""
    if not kind:
        return 0, 0, 0
    codes, scales, base = (0 if t is None else t.stride(0) * t.element_size() for t in weight[:3])
    return codes, scales, base


@lru_cache(maxsize=None)
def lay_out(rows: int, slices: int, at_once: int, count: int, most: int = _THREADS, resident: int = _RESIDENT) -> Shape:
    """Return the layout with the fewest idle threads, beyond the last slice and in the last round.

    A CTA needs a thread for each of its rows between barriers: the thread loads the base and bias of the row.

    Args:
        rows: of the result.
        slices: threads per row.
        at_once: grids of CTAs that run at the same time.
        count: multiprocessors of the device.
        most: threads of a CTA, unless one row needs more.
        resident: threads per multiprocessor.
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
