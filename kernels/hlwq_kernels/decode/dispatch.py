"""Decode rows: unpack the codes, look the centroids up, rotate back, scale."""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from ..codes.hadamard import hadamard
from ..codes.planes import unpack_codes
from ..codes.tables import SCALE_STEPS
from ..common.custom_op import op_where_traced
from ..common.device import runs_triton


def block_scales(scales: torch.Tensor, base: torch.Tensor | None, block_size: int) -> torch.Tensor:
    """The float32 scales s of blocks, from what is stored.

    Args:
        scales: uint8 or float16 (..., blocks).
        base: bfloat16 (...) where scales are uint8, else None.
        block_size: n; a float16 scale is the block's L2 norm, sqrt(n) times s.
    """
    if base is None:
        return scales.to(torch.float32) * float(np.float32(block_size**-0.5))
    steps = torch.from_numpy(SCALE_STEPS).to(scales.device)
    return base.to(torch.float32)[..., None] * steps[scales.to(torch.int32)]


def decode_rows(
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Decode what `encode_rows` made; the same values on every device.

    Under torch.compile a `torch.library` custom op, which is taken whole.

    Args:
        codes: uint8 (rows, padded * bits / 8).
        scales: uint8 or float16 (rows, padded / block_size).
        base: bfloat16 (rows,), or None with float16 scales.
        centroids: float32 (2^bits,).
        block_size: n.
        columns: columns of the weight, at most `padded`.
        dtype: float32, or bfloat16 or float16, to which the float32 values are rounded.

    Returns:
        (rows, columns), of `dtype`.
    """
    return _decode(codes, scales, base, centroids, block_size, columns, dtype)


def _decode_on_its_device(
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    if runs_triton(codes.device):
        from .triton_gpu import decode_rows_triton

        return decode_rows_triton(codes, scales, base, centroids, block_size, columns, dtype)
    decode = decode_rows_reference
    if codes.device.type == "cpu":
        with contextlib.suppress(ImportError):  # no numba for this Python: slower, same values
            from .numba_cpu import decode_rows_numba as decode
    return decode(codes, scales, base, centroids, block_size, columns).to(dtype)


_decode_op = torch.library.custom_op("hlwq::decode_rows", _decode_on_its_device, mutates_args=())
_decode = op_where_traced(_decode_op, _decode_on_its_device)


@_decode_op.register_fake
def _(
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return codes.new_empty((codes.shape[0], columns), dtype=dtype)


def decode_rows_reference(
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    columns: int,
) -> torch.Tensor:
    """The reference of `decode_rows`; the sums come before the scale, so that nothing can overflow within."""
    bits = centroids.numel().bit_length() - 1
    table = centroids.to(codes.device)
    s = block_scales(scales, base, block_size) * float(np.float32(block_size**-0.5))
    values = table[unpack_codes(codes, bits).to(torch.int32)].unflatten(1, (-1, block_size))
    return (hadamard(values) * s[..., None]).flatten(1)[:, :columns].contiguous()
