"""Decode rows: unpack the codes, look up the centroids, rotate back, scale."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from ..common import supports_triton, traceable
from .reference import decode_rows_reference


def decode_rows(
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Decode the result of `encode_rows`; the values are the same on every device.

    Under torch.compile this is one `torch.library` custom op.

    Args:
        codes: uint8 (rows, padded * bits / 8).
        scales: uint8 or float16 (rows, padded / block_size).
        base: bfloat16 (rows,), or None with float16 scales.
        centroids: float32 (2^bits,).
        block_size: n.
        columns: columns of the weight, at most `padded`.
        dtype: float32, bfloat16 or float16. The float32 values are rounded to it.

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
    if supports_triton(codes.device):
        from .triton_gpu import decode_rows_triton

        return decode_rows_triton(codes, scales, base, centroids, block_size, columns, dtype)
    decode = decode_rows_reference
    if codes.device.type == "cpu":
        with contextlib.suppress(ImportError):  # no numba for this Python: slower, same values
            from .numba_cpu import decode_rows_numba as decode
    return decode(codes, scales, base, centroids, block_size, columns).to(dtype)


_decode_op = torch.library.custom_op("hlwq::decode_rows", _decode_on_its_device, mutates_args=())
_decode = traceable(_decode_op, _decode_on_its_device)


@_decode_op.register_fake
def _(codes: torch.Tensor, *others: Any) -> torch.Tensor:
    *_, columns, dtype = others
    return codes.new_empty((codes.shape[0], columns), dtype=dtype)


def decode_used_parts(
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    columns: int,
    dtype: torch.dtype,
    uses: torch.Tensor,
) -> torch.Tensor:
    """Decode rows on a device that `supports_triton` accepts, without those of unused parts.

    Args:
        codes: see `decode_rows`.
        scales: likewise.
        base: likewise.
        centroids: likewise.
        block_size: likewise.
        columns: likewise.
        dtype: likewise.
        uses: int32 (parts,), on the device. The rows are that many parts of equal size. A part whose entry is 0 may
            be left undefined.

    Returns:
        (rows, columns), of `dtype`.
    """
    from .triton_gpu import decode_rows_triton

    return decode_rows_triton(codes, scales, base, centroids, block_size, columns, dtype, uses)
