"""Encode keys and values: each head of each token is rotated, given one scale, quantized and packed.

The scale is the best of six near the root mean square. It costs one byte where float16 costs two, and its error is a
fifth below that of the root mean square itself. kv_tables.py describes what is stored; the kernel is in kv_encode.cu.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from ..codes import ceil_div, pack_codes, tree_sum
from ..common import DTYPE_IDS, CudaKernel, Macros, supports_nvrtc
from ..linear import rotate_activation
from .kv_tables import NAN_SCALE, SEARCH, THRESHOLDS, UNIT_SCALE, KVTables, padded_dim, rotation_block

SOURCE = "attention/kv_encode.cu"
THREADS = 128
"""Threads of a CTA: four warps, each with a head of a token. Not measured against other numbers."""

_KERNEL = CudaKernel(SOURCE, name="encode_tokens", fma=False)
_MAX_CUDA_DIM = 512
"""The largest head that the kernel holds in registers."""


def encode_kv(x: torch.Tensor, tables: KVTables) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize the heads of tokens.

    Args:
        x: (..., dim), floating.
        tables: the codebook, on the same device.

    Returns:
        uint8 codes (..., padded * bits / 8), packed planes, and uint8 scales (...).
    """
    if x.shape[-1] <= _MAX_CUDA_DIM and supports_nvrtc(x.device):
        return encode_kv_cuda(x, tables)
    return encode_kv_reference(x, tables)


def encode_kv_reference(x: torch.Tensor, tables: KVTables) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize the heads of tokens; see `encode_kv`."""
    dim = x.shape[-1]
    z = rotate_activation(x.to(torch.float32), rotation_block(dim))
    middle = _scale_index(_energy(z) * float(np.float32(1.0 / z.shape[-1])))
    best, found = torch.full_like(middle, torch.inf, dtype=torch.float32), torch.zeros_like(middle)
    codes = torch.zeros(z.shape, dtype=torch.uint8, device=x.device)
    for offset in SEARCH:
        k = (middle + offset).clamp(1, NAN_SCALE - 1)
        s = tables.scales[k]
        index = torch.bucketize(z * (1.0 / s)[..., None], tables.boundaries)
        error = _energy(z - tables.centroids[index] * s[..., None])
        better = error < best
        best, found = torch.where(better, error, best), torch.where(better, k, found)
        codes = torch.where(better[..., None], index.to(torch.uint8), codes)
    k = torch.where(middle == 0, 0, torch.where(middle >= NAN_SCALE, NAN_SCALE, found))
    return pack_codes(codes, tables.bits), k.to(torch.uint8)


def _energy(z: torch.Tensor) -> torch.Tensor:
    """Return the sums of squares, as one fixed tree over a power of two."""
    width = 1 << (z.shape[-1] - 1).bit_length()
    return tree_sum(torch.nn.functional.pad(z * z, (0, width - z.shape[-1])))


def _scale_index(mean_square: torch.Tensor) -> torch.Tensor:
    """Return the k nearest to the root of a mean square: 0 for zeros, 255 where no scale is large enough."""
    mantissa, exponent = torch.frexp(mean_square)
    above = sum((2 * mantissa >= t).to(torch.int64) for t in THRESHOLDS)
    k = UNIT_SCALE + 4 * (exponent.to(torch.int64) - 1) + above
    k = torch.where(mean_square.isfinite() & (k < NAN_SCALE - 2), k.clamp(min=0), NAN_SCALE)
    return torch.where(mean_square == 0, 0, k)


@lru_cache(maxsize=None)
def kv_encode_macros(bits: int, dim: int, dtype: torch.dtype) -> Macros:
    """Return the macros of attention/kv_encode.cu."""
    kind = DTYPE_IDS[dtype]
    return (
        ("BITS", bits), ("INPUT", kind), ("THREADS", THREADS),
        ("N", rotation_block(dim)), ("GATE", 0), ("DIM", dim), ("STORED", padded_dim(dim)), ("LOWEST_STEP", SEARCH[0]),
        ("HIGHEST_STEP", SEARCH[-1]), *((f"THRESHOLD_{i}", f"{t!r}f") for i, t in enumerate(THRESHOLDS)),
    )  # fmt: skip


def kv_encode_shared_bytes(bits: int, stored: int) -> int:
    """Return the bytes of shared memory that a CTA takes."""
    return 4 * (2 * (1 << bits) + 256) + THREADS // 32 * stored


def encode_kv_cuda(x: torch.Tensor, tables: KVTables) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize the heads of tokens on a CUDA device; see `encode_kv`."""
    x = x.contiguous() if x.dtype in DTYPE_IDS else x.to(torch.float32).contiguous()
    macros, warps = kv_encode_macros(tables.bits, x.shape[-1], x.dtype), THREADS // 32
    stored = padded_dim(x.shape[-1])
    codes = torch.empty(*x.shape[:-1], stored * tables.bits // 8, dtype=torch.uint8, device=x.device)
    scales = torch.empty(x.shape[:-1], dtype=torch.uint8, device=x.device)
    if scales.numel():
        shared = kv_encode_shared_bytes(tables.bits, stored)
        grid = min(ceil_div(scales.numel(), warps), _KERNEL.resident(x.device, macros, THREADS, shared))
        _KERNEL.launch(
            x.device,
            macros,
            (grid,),
            THREADS,
            x,
            scales.numel(),
            tables.boundaries,
            tables.centroids,
            tables.scales,
            codes,
            scales,
            shared=shared,
        )
    return codes, scales
