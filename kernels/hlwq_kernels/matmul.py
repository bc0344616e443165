"""Products of a few rows of activations with coded weights on a CUDA device: launches of rotate.cu and matmul.cu."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from .nvrtc import CudaKernel, Macros, runs_nvrtc
from .tables import scale_steps_on

FEW = 16
"""Rows of activations up to which multiplying by codes beats decoding them first (docs/log.md, 2026-11-25)."""

_ROTATE = CudaKernel("rotate.cu", name="rotate_rows")
_MULTIPLY = CudaKernel("matmul.cu", name="multiply_codes")
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_COPIES = {2: 32, 3: 32, 4: 32, 5: 8, 6: 2, 7: 32, 8: 32}
"""How often the table of centroids lies in shared memory: as often as 32 KB hold it, at most once a bank."""
_WARPS, _ROWS, _CHUNK = 8, 16, 128
_ACTIVATIONS = {None: 0, "silu": 1, "gelu_pytorch_tanh": 2}

ACTIVATIONS = frozenset(name for name in _ACTIVATIONS if name)
"""Gates that `rotate_rows` applies itself."""


class Rotated(NamedTuple):
    """Rotated rows, for `multiply_codes`: fp16 (rows, padded), and float32 (rows,), what one unit of each is worth."""

    values: torch.Tensor
    units: torch.Tensor


class CodedWeight(NamedTuple):
    """A coded weight of (..., out, in): see `decode_rows` for its tensors, each with those leading dimensions."""

    codes: torch.Tensor
    scales: torch.Tensor
    base: torch.Tensor | None
    centroids: torch.Tensor
    block_size: int

    @property
    def padded(self) -> int:
        """Columns, padding included."""
        return self.scales.shape[-1] * self.block_size

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.centroids.numel().bit_length() - 1


def runs_matmul(x: torch.Tensor) -> bool:
    """Whether `multiply_codes` takes activations like these: float16 or bfloat16, on a CUDA device that can."""
    return x.dtype in (torch.bfloat16, torch.float16) and runs_nvrtc(x.device)


def rotate_rows(x: torch.Tensor, block_size: int, gate: str | None = None) -> Rotated:
    """Rotate the blocks of each row.

    Args:
        x: (rows, columns), or with a gate (rows, 2 * columns): gates, then values, of which gate(a) * b is rotated.
        block_size: n; columns are padded with zeros to whole blocks.
        gate: None or one of ACTIVATIONS.
    """
    x = x.contiguous()
    rows, columns = x.shape[0], x.shape[1] // (2 if gate else 1)
    blocks = -(-columns // block_size)
    out = Rotated(
        torch.empty(rows, blocks * block_size, dtype=torch.float16, device=x.device),
        torch.empty(rows, dtype=torch.float32, device=x.device),
    )
    macros: Macros = (("N", block_size), ("INPUT", _TYPES[x.dtype]), ("ACT", _ACTIVATIONS[gate]))
    threads = 32 * min(32, max(1, -(-blocks // 2)))
    _ROTATE.launch(x.device, macros, (rows,), threads, x, columns, blocks, out.values, out.units)
    return out


def multiply_codes(x: Rotated, weight: CodedWeight, dtype: torch.dtype, bias: torch.Tensor | None) -> torch.Tensor:
    """X W^T + bias for up to FEW rows: (rows, out), of `dtype`, summed in float32."""
    rows = len(x.values)
    y = torch.empty(rows, weight.codes.shape[0], dtype=dtype, device=x.values.device)
    groups = -(-y.shape[1] // _ROWS)
    split = _split(groups, weight.padded, y.device)
    grid = (-(-groups * split // _WARPS), 1)
    _launch(x, rows, weight, y, grid, split, 0, tiles=-(-rows // 8), bias=bias)
    return y


def multiply_each(x: Rotated, experts: CodedWeight, chosen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Row i of x times each of the experts that it chose.

    Args:
        x: of (tokens, in).
        experts: coded (experts, out, in).
        chosen: int64 (tokens, k); numbers that are no expert's give zeros.
        dtype: of the result.

    Returns:
        (tokens * k, out).
    """
    tokens, k = chosen.shape
    y = torch.empty(tokens * k, experts.codes.shape[1], dtype=dtype, device=chosen.device)
    groups = -(-y.shape[1] // _ROWS)
    split = _split(groups * len(y), experts.padded, y.device)
    grid = (-(-groups * split // _WARPS), len(y))
    _launch(x, tokens, experts, y, grid, split, 1, chosen=chosen, share=k)
    return y


def multiply_and_sum(
    x: Rotated, experts: CodedWeight, chosen: torch.Tensor, routed: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """For each token the sum of rows of x times the experts that it chose, weighed.

    Args:
        x: of (tokens * k, in).
        experts: coded (experts, out, in).
        chosen: int64 (tokens, k).
        routed: float32 (tokens, k), the weights.
        dtype: of the result.

    Returns:
        (tokens, out).
    """
    tokens, k = chosen.shape
    y = torch.empty(tokens, experts.codes.shape[1], dtype=dtype, device=chosen.device)
    grid = (-(-y.shape[1] // _ROWS), tokens)
    split = max(s for s in (1, 2, 4, 8) if s * k <= max(_WARPS, k))
    _launch(x, tokens, experts, y, grid, split, 2, chosen=chosen, routed=routed, share=k)
    return y


def _launch(
    x: Rotated, tokens: int, weight: CodedWeight, y: torch.Tensor, grid: tuple[int, ...], split: int, experts: int, *,
    tiles: int = 1, bias: torch.Tensor | None = None, chosen: torch.Tensor | None = None,
    routed: torch.Tensor | None = None, share: int = 1,
) -> None:  # fmt: skip
    codes, scales = _aligned(weight.codes), weight.scales.contiguous()
    base = None if weight.base is None else weight.base.contiguous()
    row_bytes, bits = codes.shape[-1], weight.bits
    macros: Macros = (
        ("BITS", bits), ("N", weight.block_size), ("LOG8", int(base is not None)), ("SPLIT", split), ("TILES", tiles),
        ("ALIGN", min(16, row_bytes & -row_bytes)), ("OUTPUT", _TYPES[y.dtype]), ("EXPERTS", experts),
        ("COPIES", _COPIES[bits]),
    )  # fmt: skip
    centroids, steps = weight.centroids.to(y.device), scale_steps_on(y.device)
    count = codes.shape[0] if experts else 1
    if y.numel():
        _MULTIPLY.launch(
            y.device, macros, grid, 32 * _WARPS, x.values, x.units, tokens, codes, scales, base, centroids, steps,
            bias, y.shape[-1], weight.padded, chosen, routed, share, count, y, overlap=True,
        )  # fmt: skip


def _split(groups: int, columns: int, device: torch.device) -> int:
    """How many warps share a group of rows: enough to fill the device, no more than there are chunks of columns."""
    wanted = 24 * _processors(device)
    most = -(-columns // _CHUNK)
    return next((s for s in (1, 2, 4) if groups * s >= wanted or 2 * s > most), 8)


@lru_cache(maxsize=None)
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _aligned(codes: torch.Tensor) -> torch.Tensor:
    codes = codes.contiguous()
    return codes if codes.data_ptr() % 16 == 0 else codes.clone()
