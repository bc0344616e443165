"""The encoder with error feedback for CUDA devices: a kernel per block of columns, products of matrices in between."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..codes import (
    ERROR_UNIT,
    HALF_STEP,
    LARGEST,
    SCALE_STEPS,
    SEARCH_HIGH,
    SEARCH_LOW,
    SMALLEST,
    CodeTables,
    ceil_div,
    padded_columns,
)
from ..common import DTYPE_IDS, CudaKernel, Macros
from .cuda_config import EncodeKernelConfig, boundary_pairs
from .feedback_reference import HEADROOM
from .feedback_types import FeedbackFactor, FeedbackRows

PREPARE = "encode/feedback_prepare.cu"
BLOCK = "encode/feedback.cu"
_PREPARE_THREADS = 256
"""Threads of a CTA that prepares rows, a warp each. Not measured against other numbers."""
_THREADS = 256
"""Threads of a CTA that codes. Two such CTAs leave a thread 128 registers. Not measured against other numbers."""
_ROWS_PER_CTA = 64
"""Rows for which a CTA loads the factor and the tables once. Not measured against other numbers."""
_PANEL = 4
"""Blocks whose errors are subtracted from the columns behind them by one product. Not tuned."""
_CHUNK_BYTES = 2**30
"""Bytes of rotated weights that are coded at once. Coding takes two and a half times as much memory in all."""

Launcher = Callable[[str, str, Macros, tuple[int, ...], int, list[Any], int], None]
"""Runs a kernel: source, name, macros, grid, threads, arguments, bytes of shared memory."""


@dataclass(frozen=True)
class FeedbackKernelConfig:
    """What the kernels are compiled for.

    Attributes:
        bits: width of a code.
        block_size: n, 32 or 64.
        search: whether scales are searched.
        dtype: of the weights.
        rows: rows that a warp codes at once, 1 or 2. Two take twice the registers and half the reads of the factor.
    """

    bits: int
    block_size: int
    search: bool
    dtype: torch.dtype
    rows: int = 1

    @property
    def codes(self) -> EncodeKernelConfig:
        """The layout of the table of codes, which is that of the plain encoder on a device of little shared memory."""
        return EncodeKernelConfig(
            self.bits, self.block_size, log8=True, search=self.search, dtype=torch.float32, large_smem=False
        )

    @property
    def prepare_macros(self) -> Macros:
        """The macros of encode/feedback_prepare.cu."""
        exact = {"LARGEST": LARGEST, "SMALLEST": SMALLEST, "HEADROOM": HEADROOM, "ERROR_UNIT": ERROR_UNIT}
        return (("N", self.block_size), ("INPUT", DTYPE_IDS[self.dtype]), ("GATE", 0), *_exact(exact))

    @property
    def block_macros(self) -> Macros:
        """The macros of encode/feedback.cu."""
        numbers = {
            "N": self.block_size, "BITS": self.bits, "INPUT": DTYPE_IDS[torch.float32], "SEARCH": int(self.search),
            "SPAN": self.codes.span, "PAIR_COPIES": self.codes.pair_copies, "VALUE_COPIES": 1,
            "SEARCH_LOW": SEARCH_LOW, "STEPS": SEARCH_HIGH - SEARCH_LOW + 1, "ROWS": self.rows,
            "ROWS_PER_CTA": _ROWS_PER_CTA, "THREADS": _THREADS, "RESIDENT": 2 if self.rows == 1 else 1,
        }  # fmt: skip
        return (*numbers.items(), *_exact({"HALF_STEP": HALF_STEP}))

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a CTA of encode/feedback.cu."""
        n, codes = self.block_size, self.codes
        rows = _THREADS // 32 * self.rows * 2 * n
        return 4 * (n * n + rows + n + 2 * (codes.span + 1) * codes.pair_copies + 257 + (1 << self.bits))


def _exact(numbers: dict[str, float]) -> Macros:
    return tuple((name, f"{float(np.float32(x)).hex()}f") for name, x in numbers.items())


def feedback_table(tables: CodeTables, config: FeedbackKernelConfig) -> npt.NDArray[np.int32]:
    """Return the tables of encode/feedback.cu as 32-bit words: `load_tables` there lists them."""
    coarse = np.float32(2.0 ** (tables.bits - 1))
    head = np.array([tables.inverse_outermost], np.float32)
    parts = [head, SCALE_STEPS, np.array([np.inf], np.float32), tables.centroids * coarse]
    pairs = boundary_pairs(tables.boundaries * coarse, config.codes.span)
    return np.concatenate([*(p.view(np.int32) for p in parts), pairs.reshape(-1)])


@lru_cache(maxsize=64)
def _table_on(centroids: bytes, config: FeedbackKernelConfig, device: torch.device) -> torch.Tensor:
    tables = CodeTables.from_centroids(np.frombuffer(centroids, dtype=np.float32).copy())
    return torch.from_numpy(feedback_table(tables, config)).to(device)


@lru_cache(maxsize=None)
def _kernel(source: str, name: str) -> CudaKernel:
    return CudaKernel(source, name, fma=source == BLOCK)


def launch_on_device(
    source: str, name: str, macros: Macros, grid: tuple[int, ...], threads: int, arguments: list[Any], shared: int
) -> None:
    """Queue a kernel on the device of its first argument."""
    _kernel(source, name).launch(arguments[0].device, macros, grid, threads, *arguments, shared=shared)


def encode_feedback_cuda(
    weight: torch.Tensor,
    factor: FeedbackFactor,
    tables: CodeTables,
    block_size: int,
    search: bool,
    rows_per_warp: int = 1,
    launch: Launcher = launch_on_device,
) -> FeedbackRows:
    """Encode (experts, rows, columns) weights in blocks of at most LARGEST_BLOCK weights; see `encode_feedback`.

    Args:
        weight: see `encode_feedback`.
        factor: likewise.
        tables: likewise.
        block_size: likewise.
        search: likewise.
        rows_per_warp: see FeedbackKernelConfig.
        launch: runs kernels; tests run them on the CPU.
    """
    if weight.dtype not in DTYPE_IDS:
        weight = weight.to(torch.float32)
    config = FeedbackKernelConfig(tables.bits, block_size, search, weight.dtype, rows_per_warp)
    table = _table_on(tables.centroids.tobytes(), config, weight.device)
    experts, rows, columns = weight.shape
    padded = padded_columns(columns, block_size)
    chunk = max(1, _CHUNK_BYTES // max(1, 4 * rows * padded))
    work = _Work(config, table, tables.inverse_outermost, launch)
    factor = factor.to(weight.device, torch.float32)
    parts = [
        work.encode(weight[first : first + chunk].contiguous(), factor[first : first + chunk])
        for first in range(0, experts, chunk)
    ]
    return parts[0] if len(parts) == 1 else FeedbackRows(*(torch.cat(field) for field in zip(*parts, strict=True)))


@dataclass(frozen=True)
class _Work:
    """What all chunks of experts have in common."""

    config: FeedbackKernelConfig
    table: torch.Tensor
    inverse_outermost: float
    launch: Launcher

    def encode(self, weight: torch.Tensor, factor: FeedbackFactor) -> FeedbackRows:
        z, base, unit, energy = self._prepare(weight)
        experts, rows, padded = z.shape
        n, bits = self.config.block_size, self.config.bits
        codes = torch.empty(experts, rows, padded * bits // 8, dtype=torch.uint8, device=z.device)
        scales = torch.empty(experts, rows, padded // n, dtype=torch.uint8, device=z.device)
        squares, losses = torch.zeros_like(energy), torch.zeros_like(energy)
        upper, cost, left = factor.upper.contiguous(), factor.cost.contiguous(), z.clone()
        errors = z.new_empty(experts, rows, _PANEL * n)
        for start in range(0, padded if z.numel() else 0, _PANEL * n):
            behind = min(start + _PANEL * n, padded)
            for first in range(start, behind, n):
                arguments = [
                    z, left, base, upper, cost, rows, padded, first, self.table, codes, codes.shape[-1], scales,
                    errors, errors.shape[-1], first - start, squares, losses,
                ]  # fmt: skip
                grid = (ceil_div(rows, _ROWS_PER_CTA), experts)
                self.launch(
                    BLOCK, "feedback", self.config.block_macros, grid, _THREADS, arguments, self.config.shared_bytes
                )
                _subtract(left, errors[..., first - start : first - start + n], upper, first, first + n, behind)
            _subtract(left, errors[..., : behind - start], upper, start, behind, padded)
        del left, errors
        outputs = torch.linalg.solve_triangular(upper, z, upper=True, left=False, unitriangular=True)
        output_energy = (outputs.square_() * cost[:, None]).sum(dim=-1, dtype=torch.float64)
        scale = unit.to(torch.float64).square()
        stored_base = (base * unit).to(torch.bfloat16)
        return FeedbackRows(codes, scales, stored_base, squares * scale, energy, losses * scale, output_energy * scale)

    def _prepare(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        experts, rows, columns = weight.shape
        padded = padded_columns(columns, self.config.block_size)
        z = torch.empty(experts, rows, padded, device=weight.device)
        base, unit = (torch.empty(experts, rows, device=weight.device) for _ in range(2))
        energy = torch.empty(experts, rows, dtype=torch.float64, device=weight.device)
        if weight.numel():
            largest = ctypes.c_float(self.inverse_outermost)
            arguments = [weight, experts * rows, columns, padded, largest, z, base, unit, energy]
            grid = (ceil_div(experts * rows, _PREPARE_THREADS // 32),)
            self.launch(PREPARE, "feedback_prepare", self.config.prepare_macros, grid, _PREPARE_THREADS, arguments, 0)
        return z, base, unit, energy


def _subtract(left: torch.Tensor, errors: torch.Tensor, upper: torch.Tensor, first: int, start: int, end: int) -> None:
    """Subtract from columns `start` to `end` what the errors of the columns from `first` mean for them."""
    if start < end:
        left[..., start:end].baddbmm_(errors, upper[:, first : first + errors.shape[-1], start:end], alpha=-1)
