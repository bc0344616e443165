"""The encoder for CUDA devices, in Triton: the bytes of the torch twin.

Two kernels. `rows_kernel` reads the weights twice, the second time from a cache: for the largest weight of each row,
then for the energies and the base. `blocks_kernel` reads them once more, searches the scale, codes and packs; it knows
nothing of rows but their base and exponent, so that a matrix of any shape fills its threads.

Fused multiply-adds are forbidden by a launch option; square roots and divisions are asked for in their correctly
rounded form. What Triton may round otherwise decides nothing: log2 makes a guess that the table corrects, and floor may
take a denormal for zero, which lies beside the boundary at zero and is then compared with it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton

from .blocks_triton import LANE
from .device import current_device
from .encode import EncodedRows, ScaleKind
from .rows_triton import rows_kernel
from .search_triton import blocks_kernel
from .tables import SEARCH_FACTORS, CodeTables, scale_steps_on

_THREADS, _ROWS, _ACROSS = 128, 4, 16


class _DeviceTables(NamedTuple):
    tables: CodeTables
    steps: torch.Tensor
    factors: torch.Tensor
    centroids: torch.Tensor
    boundaries: torch.Tensor
    cell_codes: torch.Tensor
    cell_values: torch.Tensor


@lru_cache(maxsize=32)
def _device_tables(centroids: bytes, device: torch.device) -> _DeviceTables:
    """The tables of a codebook on a device, copied there once."""
    t = CodeTables.from_centroids(np.frombuffer(centroids, dtype=np.float32).copy())
    arrays = (SEARCH_FACTORS, t.centroids, t.boundaries, t.cell_codes, t.cell_values)
    return _DeviceTables(t, scale_steps_on(device), *(torch.from_numpy(a).to(device) for a in arrays))


class _Coded(NamedTuple):
    """What the kernels write; `errors` counts units, and a unit's worth is that of its row."""

    codes: torch.Tensor
    scales: torch.Tensor
    base: torch.Tensor
    errors: torch.Tensor
    units: torch.Tensor
    energy: torch.Tensor


def encode_rows_triton(
    weight: torch.Tensor, tables: CodeTables, block_size: int, scale: ScaleKind, search: bool
) -> EncodedRows:
    """See `encode_rows`."""
    centroids, log8 = torch.from_numpy(tables.centroids), scale == "log8"
    codes, scales, base, error, energy = _encode_op(weight, centroids, block_size, log8, search)
    return EncodedRows(codes, scales, base if log8 else None, error, energy)


@torch.library.custom_op("hlwq::encode_rows", mutates_args=())
def _encode_op(
    weight: torch.Tensor, centroids: torch.Tensor, block_size: int, log8: bool, search: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The fields of EncodedRows; `centroids` is on the CPU, and only `log8` fills the base."""
    if weight.shape[1] == 0:
        raise ValueError("a row to encode has no columns")
    tables = _device_tables(centroids.numpy().tobytes(), weight.device)
    whole = _whole_blocks(weight, block_size)
    out = _empty(whole, tables.tables.bits, block_size, log8)
    if len(weight):
        with current_device(weight.device):
            _launch(whole, tables, block_size, log8, search, out)
    return out.codes, out.scales, out.base, out.errors * out.units, out.energy


@_encode_op.register_fake
def _(
    weight: torch.Tensor, centroids: torch.Tensor, block_size: int, log8: bool, search: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = weight.shape
    padded = -(-columns // block_size) * block_size
    whole = weight.new_empty((rows, padded))
    out = _empty(whole, centroids.shape[0].bit_length() - 1, block_size, log8)
    return out.codes, out.scales, out.base, out.units, out.energy


def _empty(whole: torch.Tensor, bits: int, block_size: int, log8: bool) -> _Coded:
    rows, padded = whole.shape
    return _Coded(
        codes=whole.new_empty((rows, padded * bits // 8), dtype=torch.uint8),
        scales=whole.new_empty((rows, padded // block_size), dtype=torch.uint8 if log8 else torch.float16),
        base=whole.new_empty((rows,), dtype=torch.bfloat16),
        errors=whole.new_empty((rows,), dtype=torch.int64),
        units=whole.new_empty((rows,), dtype=torch.float64),
        energy=whole.new_empty((rows,), dtype=torch.float64),
    )


def _launch(whole: torch.Tensor, tables: _DeviceTables, block_size: int, log8: bool, search: bool, out: _Coded) -> None:
    rows, blocks = out.scales.shape
    t, groups = tables.tables, block_size // LANE.value
    root, inverse_root = float(np.float32(block_size**0.5)), float(np.float32(block_size**-0.5))
    exponents = whole.new_empty((rows,), dtype=torch.int32)
    bases = whole.new_empty((rows,), dtype=torch.float32)
    rows_kernel[(triton.cdiv(rows, _ROWS),)](
        whole, rows, blocks, inverse_root, t.inverse_outermost,
        exponents, bases, out.base, out.energy, out.units, out.errors,
        GROUPS=groups, ROWS=_ROWS, ACROSS=_ACROSS, LOG8=log8,
        num_warps=_ROWS * _ACROSS // 32, enable_fp_fusion=False,
    )  # fmt: skip
    blocks_kernel[(triton.cdiv(rows * blocks, _THREADS),)](
        whole, rows * blocks, blocks, out.codes.shape[1], root, inverse_root, t.inverse_outermost,
        t.cells_per_unit, t.cells, exponents, bases, tables.steps, tables.factors, tables.centroids,
        tables.boundaries, tables.cell_codes, tables.cell_values, out.codes, out.scales, out.errors,
        BITS=t.bits, GROUPS=groups, THREADS=_THREADS, LOG8=log8, SEARCH=search,
        num_warps=_THREADS // 32, enable_fp_fusion=False,
    )  # fmt: skip


def _whole_blocks(weight: torch.Tensor, block_size: int) -> torch.Tensor:
    """The weight in a type and layout that the kernels load 16 bytes at a time; a copy only where it must be."""
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        weight = weight.to(torch.float32)
    padding = -weight.shape[1] % block_size
    if padding:
        weight = torch.nn.functional.pad(weight, (0, padding))
    weight = weight.contiguous()
    return weight if weight.data_ptr() % 16 == 0 else weight.clone()
