"""The decoder for CUDA devices, in Triton: the values of the reference.

A thread unpacks and rotates a whole block (see blocks_triton). The tensors of a block are joined before the store.
Triton then passes them through shared memory, and each warp writes whole lines.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from ..codes import bits_of, scale_steps_on
from ..common import current_device
from .blocks_triton import LANE, rotate
from .planes_triton import load_codes

THREADS = 128
"""Threads of a program, each with a block. Not measured against other numbers."""


@triton.jit
def _joined(x, GROUPS: tl.constexpr):
    """Join a tuple of (blocks, 8) to one (blocks, n)."""
    if GROUPS == 1:
        return x[0]
    else:
        half: tl.constexpr = GROUPS // 2
        low, high = _joined(x[:half], half), _joined(x[half:], half)
        return tl.permute(tl.join(low, high), (0, 2, 1)).reshape(low.shape[0], 2 * half * LANE)


@triton.jit(do_not_specialize=["total", "blocks", "row_units", "part_blocks"])
def _decode_kernel(
    codes,
    scales,
    base,
    steps,
    centroids,
    out,
    uses,
    total,
    blocks,
    row_units,
    part_blocks,
    inverse_root,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCKS: tl.constexpr,
    ALIGN: tl.constexpr,
    LOG8: tl.constexpr,
    SOME: tl.constexpr,
):
    if SOME:  # a program's blocks belong to two parts at most
        first = tl.program_id(0) * BLOCKS
        last = tl.minimum(first + BLOCKS, total) - 1
        if tl.load(uses + first // part_blocks) + tl.load(uses + last // part_blocks) == 0:
            return
    n: tl.constexpr = GROUPS * LANE
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < total
    row = block // blocks
    row_start = codes + row.to(tl.int64) * row_units * ALIGN
    c = load_codes(row_start, blocks, block - row * blocks, inside, BITS, GROUPS, ALIGN)
    stored = tl.load(scales + block, mask=inside, other=0.0)
    if LOG8:
        s = tl.load(base + row, mask=inside, other=0.0).to(tl.float32) * tl.load(steps + stored.to(tl.int32))
    else:
        s = stored.to(tl.float32) * inverse_root
    s = s * inverse_root
    values = ()
    for g in tl.static_range(GROUPS):
        values = values + (tl.load(centroids + c[g]),)
    values = rotate(values, GROUPS)
    weights = ()
    for g in tl.static_range(GROUPS):
        weights = weights + ((values[g] * s[:, None]).to(out.dtype.element_ty),)
    offsets = block.to(tl.int64)[:, None] * n + tl.arange(0, n)[None, :]
    tl.store(out + offsets, _joined(weights, GROUPS), mask=inside[:, None])


def decode_rows_triton(
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    columns: int,
    dtype: torch.dtype,
    uses: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode rows on a CUDA device; see `decode_rows`, and `decode_used_parts` for `uses`."""
    rows, blocks = scales.shape
    bits, row_bytes = bits_of(centroids), codes.shape[1]
    align = min(16, row_bytes & -row_bytes)
    part_blocks = rows * blocks if uses is None else rows // len(uses) * blocks
    out = torch.empty(rows, blocks * block_size, dtype=dtype, device=codes.device)
    if rows and blocks:
        with current_device(codes.device):
            _decode_kernel[(triton.cdiv(rows * blocks, THREADS),)](
                _aligned(codes),
                scales.contiguous(),
                None if base is None else base.contiguous(),
                scale_steps_on(codes.device),
                centroids.to(codes.device),
                out,
                uses,
                rows * blocks,
                blocks,
                row_bytes // align,
                part_blocks,
                float(np.float32(block_size**-0.5)),
                BITS=bits,
                GROUPS=block_size // LANE.value,
                BLOCKS=THREADS,
                ALIGN=align,
                LOG8=base is not None,
                SOME=uses is not None and part_blocks >= THREADS,
                num_warps=THREADS // 32,
                enable_fp_fusion=False,
            )
    return out if columns == out.shape[1] else out[:, :columns].contiguous()


def _aligned(codes: torch.Tensor) -> torch.Tensor:
    codes = codes.contiguous()
    return codes if codes.data_ptr() % 16 == 0 else codes.clone()
