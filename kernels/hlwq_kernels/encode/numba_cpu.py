"""The encoder compiled for the CPU by numba: the bytes of the reference, row by row, without the GIL."""

from __future__ import annotations

import numpy as np
import torch

from ..codes import ERROR_UNIT, SCALE_STEPS, SEARCH_FACTORS, SEARCH_LOW, CodeTables, ceil_div, plane_widths
from ..codes.blocks_numba import (
    CANDIDATES,
    choose,
    code,
    f32,
    fp16_candidates,
    jit,
    log8_candidates,
    measure,
    pack_row,
    power_of_two,
    row_range,
)
from .types import EncodedRows, ScaleKind


@jit
def _encode(  # type: ignore[no-untyped-def]
    weight,
    order,
    log8,
    search,
    widths,
    steps,
    factors,
    centroids,
    boundaries,
    per_unit,
    cell_codes,
    cell_values,
    root,
    inverse_root,
    inverse_outermost,
    packed,
    stored,
    bases,
    errors,
    energies,
):
    n = 1 << len(order)
    rows = weight.shape[0]
    blocks = stored.shape[1]
    z, codes = np.empty(blocks * n, f32), np.empty(blocks * n, np.uint8)
    energy, outermost = np.empty(blocks, f32), np.empty(blocks, f32)
    magnitude, work, index = np.empty(n, f32), np.empty(n, f32), np.empty(n, np.int32)
    scales, stored_scales = np.empty(CANDIDATES, f32), np.empty(CANDIDATES, f32)
    for row in range(rows):
        finite, some, exponent = row_range(weight[row].view(np.uint32))
        codes[:] = 0
        stored[row, :] = f32(0.0)
        bases[row], errors[row], energies[row] = f32(0.0), 0.0, 0.0 if finite else np.nan
        row_error, row_energy, overflow = np.int64(0), np.int64(0), False
        if finite and some:
            up, down = power_of_two(exponent), power_of_two(-exponent)
            unit = np.float64(up) * np.float64(up) / ERROR_UNIT
            base = measure(weight[row], down, inverse_root, inverse_outermost, order, z, energy, outermost, work)
            bases[row] = base * up
            for b in range(blocks):
                row_energy += np.int64(energy[b] * f32(ERROR_UNIT))
                if log8:
                    count = log8_candidates(energy[b], outermost[b], base, search, steps, order, stored_scales, scales)
                else:
                    count = fp16_candidates(
                        energy[b], outermost[b], up, down, search, factors, root, inverse_root, stored_scales, scales
                    )
                    if np.isinf(stored_scales[-SEARCH_LOW if search else 0]):
                        overflow = True
                block, best_index, error = z[b * n : b * n + n], 0, f32(np.inf)
                if search:
                    best_index = choose(block, scales, count, per_unit, cell_values, order, magnitude, work, index)
                if scales[best_index] > f32(0.0):
                    error = code(
                        block,
                        scales[best_index],
                        per_unit,
                        cell_codes,
                        boundaries,
                        centroids,
                        order,
                        codes[b * n : b * n + n],
                        work,
                        index,
                    )
                if error < energy[b]:
                    stored[row, b] = stored_scales[best_index]
                else:
                    codes[b * n : b * n + n] = 0
                    error = energy[b]
                row_error += np.int64(error * f32(ERROR_UNIT))
            energies[row] = row_energy * unit
            errors[row] = np.inf if overflow else row_error * unit
        pack_row(codes, widths, packed[row])


def encode_rows_numba(
    weight: torch.Tensor, tables: CodeTables, block_size: int, scale: ScaleKind, search: bool
) -> EncodedRows:
    """Encode rows on the CPU; see `encode_rows`."""
    rows, columns = weight.shape
    blocks = ceil_div(columns, block_size)
    log8 = scale == "log8"
    codes = torch.empty(rows, blocks * block_size * tables.bits // 8, dtype=torch.uint8)
    scales = torch.empty(rows, blocks, dtype=torch.float32)
    base = torch.empty(rows, dtype=torch.float32)
    error, energy = torch.empty(rows, dtype=torch.float64), torch.empty(rows, dtype=torch.float64)
    order, root = (0,) * (block_size.bit_length() - 1), f32(block_size**0.5)
    _encode(
        weight.to(torch.float32).contiguous().numpy(),
        order,
        log8,
        search,
        np.array(plane_widths(tables.bits)),
        SCALE_STEPS,
        SEARCH_FACTORS,
        tables.centroids,
        tables.boundaries,
        f32(tables.cells_per_unit),
        tables.cell_codes,
        tables.cell_values,
        root,
        f32(block_size**-0.5),
        f32(tables.inverse_outermost),
        codes.numpy(),
        scales.numpy(),
        base.numpy(),
        error.numpy(),
        energy.numpy(),
    )
    return EncodedRows(
        codes=codes,
        scales=scales.to(torch.uint8 if log8 else torch.float16),
        base=base.to(torch.bfloat16) if log8 else None,
        error=error,
        energy=energy,
    )
