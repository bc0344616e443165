"""Products of 1 to 16 rows of activations with coded weights on CUDA: gemv.py for one row, else gemm_small_m.cu."""

from __future__ import annotations

import torch

from ..codes import (
    QuantizedWeight,
    ceil_div,
    kernel_macros,
    table_bytes,
    table_copies,
    to_kernel_layout,
    weight_arguments,
)
from ..common import DTYPE_IDS, CudaKernel, Macros, num_sms, shared_per_multiprocessor, supports_nvrtc
from .gemv import GATE_IDS, gemv, supports_gemv

MAX_FUSED_TOKENS = 16
"""Rows of activations that `gemm_small_m` takes at most. On an H100, decoding first takes 1.3 to 2.2 times as long for
17 rows as `gemm_small_m` for 16. For 32 rows it takes about as long as `gemm_small_m` twice (docs/benchmarks/gpu.md,
"Prompts")."""

_GEMM = CudaKernel("linear/gemm_small_m.cu", name="gemm_small_m")
_ROTATE = CudaKernel("linear/rotate.cu", name="rotate_rows")
_WARPS, _ROWS, _CHUNK = 8, 16, 128
"""Warps of a CTA, rows of a warp, and columns of a warp per step: the constants of linear/gemm_small_m.cu."""


def supports_gemm_small_m(x: torch.Tensor) -> bool:
    """Return whether these kernels support activations like `x`: float16 or bfloat16, on a supported CUDA device."""
    return x.dtype in (torch.bfloat16, torch.float16) and supports_nvrtc(x.device)


def supports_gate(x: torch.Tensor, weight: QuantizedWeight) -> bool:
    """Return whether `multiply_codes` can apply a gate to `x`: (rows, 2 * in) of up to MAX_FUSED_TOKENS rows."""
    return 0 < len(x) <= MAX_FUSED_TOKENS and supports_gemm_small_m(x)


def multiply_codes(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, gate: str | None = None
) -> torch.Tensor:
    """Return x W^T + bias for 1 to MAX_FUSED_TOKENS rows: (rows, out), in the dtype of `x`, summed in float32.

    With one of GATES, where `supports_gate` holds, x is (rows, 2 * in). Then gate(first half) * second half is
    multiplied.
    """
    y = x.new_empty(len(x), weight.codes.shape[0])
    if len(x) == 1 and supports_gemv(weight):
        gemv(x, weight, bias, gate, y)
    else:
        _gemm_small_m(x, weight, y, bias, gate)
    return y


def _gemm_small_m(
    x: torch.Tensor, weight: QuantizedWeight, y: torch.Tensor, bias: torch.Tensor | None, gate: str | None
) -> None:
    x, weight = x.contiguous(), to_kernel_layout(weight, False)
    tokens, n = len(x), weight.block_size
    blocks = weight.padded // n
    values, units = x.new_empty(tokens, weight.padded, dtype=torch.float16), x.new_empty(tokens, dtype=torch.float32)
    rotating = (("N", n), ("INPUT", DTYPE_IDS[x.dtype]), ("GATE", GATE_IDS[gate]))
    threads = 32 * min(32, max(1, ceil_div(blocks, 2)))
    _ROTATE.launch(x.device, rotating, (tokens,), threads, x, x.shape[1] // (2 if gate else 1), blocks, values, units)
    groups, tiles = ceil_div(y.shape[1], _ROWS), ceil_div(tokens, 8)
    other_bytes = 1024 + 4096 * tiles  # the table of scale steps and the sums of all warps
    copies = table_copies(weight.bits, other_bytes)
    fits = shared_per_multiprocessor(y.device) // (table_bytes(weight.bits, copies) + other_bytes)
    resident = num_sms(y.device) * max(1, min(3 if tiles == 1 else 2, fits))
    split = _split(groups, weight.padded, resident)
    macros: Macros = (
        *kernel_macros(weight, y, 32 * _WARPS, copies), ("INPUT", DTYPE_IDS[x.dtype]),
        ("SPLIT", split), ("TILES", tiles),
    )  # fmt: skip
    _GEMM.launch(
        y.device,
        macros,
        (min(resident, ceil_div(groups * split, _WARPS)),),
        32 * _WARPS,
        values,
        units,
        tokens,
        *weight_arguments(weight, y),
        bias,
        y.shape[1],
        weight.padded,
        y,
        overlap=True,
    )


def _split(groups: int, columns: int, resident: int) -> int:
    """Return how many warps share a group of rows, so that the CTAs finish soonest.

    A warp takes a number of rounds. A round takes the time of its part of the columns, plus half a chunk for sums. The
    half was not measured.
    """

    def time(split: int) -> float:
        rounds = ceil_div(groups * split, _WARPS * resident)
        return rounds * (ceil_div(columns, _CHUNK * split) + 0.5)

    return min((1, 2, 4, 8), key=time)
