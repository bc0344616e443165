"""The reference of the encoder: the definition of its bytes, readable and slow."""

from __future__ import annotations

import numpy as np
import torch

from ..codes import (
    ERROR_UNIT,
    HALF_STEP,
    LARGEST,
    OCTAVE,
    SCALE_STEPS,
    SEARCH_FACTORS,
    SEARCH_HIGH,
    SEARCH_LOW,
    SMALLEST,
    CodeTables,
    hadamard,
    pack_codes,
    tree_sum,
)
from .types import EncodedRows, ScaleKind


def encode_rows_reference(
    weight: torch.Tensor, tables: CodeTables, block_size: int, scale: ScaleKind, search: bool
) -> EncodedRows:
    """Encode rows; see `encode_rows`."""
    normalized, exponent, finite = normalize_rows(weight.to(torch.float32))
    z = rotate_rows(normalized, block_size)
    energy = tree_sum(z * z)
    choose = _log8_candidates if scale == "log8" else _fp16_candidates
    candidates, base = choose(z, energy, exponent, tables, search)
    stored, s = _best_scale(z, candidates, tables)
    codes, error = _code(z, s, tables)
    dropped = ~(error < energy)
    codes[dropped] = 0
    stored = torch.where(dropped, torch.zeros_like(stored), stored)
    error = torch.where(dropped, energy, error)
    norm = candidates[-SEARCH_LOW if search else 0][0]
    too_large = torch.isinf(norm).any(dim=1)
    unit = power_of_two(exponent).to(torch.float64) ** 2 / ERROR_UNIT
    row_error = (error * ERROR_UNIT).to(torch.int64).sum(dim=1) * unit
    row_energy = (energy * ERROR_UNIT).to(torch.int64).sum(dim=1) * unit
    return EncodedRows(
        codes=pack_codes(codes.flatten(1), tables.bits),
        scales=stored.to(torch.uint8 if scale == "log8" else torch.float16),
        base=None if base is None else (base * power_of_two(exponent)).to(torch.bfloat16),
        error=torch.where(too_large, torch.inf, row_error),
        energy=torch.where(finite, row_energy, torch.nan),
    )


def normalize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale each row by a power of two so that its largest weight lies in [1, 2); return the exponents too."""
    if weight.shape[1] == 0:
        raise ValueError("a row to encode has no columns")
    largest = weight.abs().amax(dim=1)
    finite = largest < LARGEST
    largest = torch.where(finite & (largest >= SMALLEST), largest, 0.0)
    exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 1, 0)
    normalized = torch.where(largest[:, None] > 0, weight * power_of_two(-exponent)[:, None], 0.0)
    return normalized, exponent, finite


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Return 2^exponent as float32, exactly, for exponents of normal numbers; `torch.ldexp` uses `pow`."""
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)


def rotate_rows(normalized: torch.Tensor, n: int) -> torch.Tensor:
    """Return the rotated blocks of rows, (rows, blocks, n); the last block is padded with zeros."""
    padded = torch.nn.functional.pad(normalized, (0, -normalized.shape[1] % n))
    return hadamard(padded.unflatten(1, (-1, n))) * float(np.float32(n**-0.5))


# A candidate is (what is stored, the scale it decodes to, in the row's normalized units); both float32 (rows, blocks).
Candidates = list[tuple[torch.Tensor, torch.Tensor]]


def _log8_candidates(
    z: torch.Tensor, energy: torch.Tensor, exponent: torch.Tensor, tables: CodeTables, search: bool
) -> tuple[Candidates, torch.Tensor]:
    steps = torch.from_numpy(SCALE_STEPS).to(z.device)
    rms = torch.sqrt(energy / z.shape[-1])
    outermost = z.abs().amax(dim=-1) * tables.inverse_outermost
    base = round_up_bf16(torch.maximum(rms * float(OCTAVE[SEARCH_HIGH]), outermost).amax(dim=1))
    divisor = torch.where(base > 0, base, 1.0)[:, None]

    def step_below(value: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(steps, (value / divisor).contiguous(), right=True) - 1

    if search:
        middle = step_below(rms)
        targets = [middle + j for j in range(SEARCH_LOW, SEARCH_HIGH + 1)] + [step_below(outermost)]
    else:
        targets = [step_below(rms * HALF_STEP)]
    ks = [k.clamp(1, 255) for k in targets]
    return [(k.to(torch.float32), base[:, None] * steps[k]) for k in ks], base


def _fp16_candidates(
    z: torch.Tensor, energy: torch.Tensor, exponent: torch.Tensor, tables: CodeTables, search: bool
) -> tuple[Candidates, None]:
    n = z.shape[-1]
    norm = torch.sqrt(energy)
    targets = [norm]
    if search:
        outermost = z.abs().amax(dim=-1) * tables.inverse_outermost
        targets = [norm * float(f) for f in SEARCH_FACTORS] + [outermost * float(np.float32(n**0.5))]
    up, down = power_of_two(exponent)[:, None], power_of_two(-exponent)[:, None]
    stored = [(r * up).to(torch.float16).to(torch.float32) for r in targets]
    return [(r, r * down * float(np.float32(n**-0.5))) for r in stored], None


def round_up_bf16(x: torch.Tensor) -> torch.Tensor:
    """Return the smallest bfloat16 not below a non-negative float32, as float32."""
    return (((x.view(torch.int32) + 0xFFFF) >> 16) << 16).view(torch.float32)


def _best_scale(z: torch.Tensor, candidates: Candidates, tables: CodeTables) -> tuple[torch.Tensor, torch.Tensor]:
    if len(candidates) == 1:
        return candidates[0]
    values = torch.from_numpy(tables.cell_values).to(z.device)
    magnitude = z.abs()
    stored, s = candidates[0]
    best = torch.full_like(s, torch.inf)
    for other, t in candidates:
        v = magnitude * (tables.cells_per_unit / t)[..., None]
        d = v - values[v.clamp(max=tables.cells - 1).nan_to_num(0.0).to(torch.int32)]
        error = tree_sum(d * d) * (t * t)
        better = error < best
        best, stored, s = (
            torch.where(better, error, best),
            torch.where(better, other, stored),
            torch.where(better, t, s),
        )
    return stored, s


def _code(z: torch.Tensor, s: torch.Tensor, tables: CodeTables) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes, uint8 (rows, blocks, n), and the squared errors of the blocks."""
    boundaries = torch.from_numpy(tables.boundaries[:-1]).to(z.device)
    centroids = torch.from_numpy(tables.centroids).to(z.device)
    u = z * (1.0 / s)[..., None]
    codes = torch.bucketize(u.nan_to_num(0.0), boundaries)
    d = u - centroids[codes]
    return codes.to(torch.uint8), tree_sum(d * d) * (s * s)
