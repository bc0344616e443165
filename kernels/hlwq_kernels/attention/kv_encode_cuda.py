"""The encoder of cached tokens for CUDA devices: the bytes of the reference. The kernel is in kv_encode.cu."""

from __future__ import annotations

from functools import lru_cache

import torch

from ..common.cuda_kernel import CudaKernel, Macros
from .kv_encode import SEARCH, THRESHOLDS, KVTables, padded_dim, rotation_block

SOURCES = ("common/ptx.cuh", "common/dequant.cuh", "common/hadamard.cuh", "attention/kv_encode.cu")
THREADS = 128

_KERNEL = CudaKernel(*SOURCES, name="encode_tokens", fma=False)
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@lru_cache(maxsize=None)
def kv_encode_macros(bits: int, dim: int, dtype: torch.dtype) -> Macros:
    """Of attention/kv_encode.cu and the files before it."""
    kind = _TYPES[dtype]
    return (
        ("BITS", bits), ("ALIGN", 4), ("COPIES", 1), ("INPUT", kind), ("OUTPUT", 0), ("THREADS", THREADS),
        ("N", rotation_block(dim)), ("GATE", 0), ("DIM", dim), ("STORED", padded_dim(dim)), ("LOWEST_STEP", SEARCH[0]),
        ("HIGHEST_STEP", SEARCH[-1]), *((f"THRESHOLD_{i}", f"{t!r}f") for i, t in enumerate(THRESHOLDS)),
    )  # fmt: skip


def kv_encode_shared_bytes(bits: int, stored: int) -> int:
    """Bytes of shared memory that a CTA takes."""
    return 4 * (2 * (1 << bits) + 256) + THREADS // 32 * stored


def encode_kv_cuda(x: torch.Tensor, tables: KVTables) -> tuple[torch.Tensor, torch.Tensor]:
    """See `encode_kv`."""
    x = x.contiguous() if x.dtype in _TYPES else x.to(torch.float32).contiguous()
    macros, warps = kv_encode_macros(tables.bits, x.shape[-1], x.dtype), THREADS // 32
    stored = padded_dim(x.shape[-1])
    codes = torch.empty(*x.shape[:-1], stored * tables.bits // 8, dtype=torch.uint8, device=x.device)
    scales = torch.empty(x.shape[:-1], dtype=torch.uint8, device=x.device)
    if scales.numel():
        shared = kv_encode_shared_bytes(tables.bits, stored)
        grid = min(-(-scales.numel() // warps), _KERNEL.resident(x.device, macros, THREADS, shared))
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
