"""Encode rows of weights: rotate each block, choose its scale, quantize it, pack the codes.

Every implementation follows this arithmetic to the bit, in float32 throughout and without fused multiply-add:

1. A row is scaled by a power of two so that its largest weight is in [1, 2). Rows below 2^-110 become zero.
2. Per block of n: z = hadamard(w) * (1 / sqrt(n)); the block's energy is the tree sum of z^2.
3. `log8`: base = the largest of (rms * 2^(12/32), max|z| / c_max) over the blocks of the row, rounded up to bf16. The
   scale candidates are k0 - 16 .. k0 + 12, where k0 is the largest scale index not above rms / base. One more is the
   index not above max|z| / c_max / base, at which the largest coefficient meets the outermost centroid.
   `fp16`: the candidates are the L2 norm of the block times 2^(j/32), and the one at which the largest coefficient
   meets the outermost centroid, rounded to float16.
   Without search there is one candidate. For `log8` it is the scale index nearest to the rms, the largest not above
   rms * 2^(0.5/32). For `fp16` it is the norm itself, which is the published method.
4. The first candidate of least error wins. The scale is zero if quantizing errs no less than dropping the block.
5. code = the first code whose boundary is not below z * (1 / s).
6. Errors and energies of blocks are cut to multiples of 2^-36 and summed over a row as integers, so any order gives
   the same sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..codes import CodeTables
from ..common import supports_nvrtc
from .types import EncodedRows, ScaleKind


def encode_rows(
    weight: torch.Tensor, tables: CodeTables, block_size: int, scale: ScaleKind = "log8", search: bool = True
) -> EncodedRows:
    """Encode (rows, columns) weights of any floating dtype; the same bytes on every device.

    Args:
        weight: (rows, columns).
        tables: the codebook.
        block_size: a power of two from 32 to 256.
        scale: kind of block scale.
        search: try 30 scales per block and keep the best, rather than one.
    """
    if supports_nvrtc(weight.device):
        from .cuda_gpu import encode_rows_cuda as encode
    elif weight.device.type == "cpu":
        try:
            from .numba_cpu import encode_rows_numba as encode
        except ImportError:  # no numba for this Python: slower, same bytes
            from .reference import encode_rows_reference as encode
    else:
        from .reference import encode_rows_reference as encode
    return encode(weight, tables, block_size, scale, search)


def prepare_encode(
    weight: torch.Tensor, tables: CodeTables, block_size: int, scale: ScaleKind, search: bool, out: EncodedRows
) -> Callable[[], None]:
    """Prepare to encode many matrices of one shape.

    On a GPU a matrix takes milliseconds. New tensors and the search for the kernel would add to that for each matrix.

    Args:
        weight: (rows, columns), memory that is filled before each call and is not moved.
        tables: see `encode_rows`.
        block_size: likewise.
        scale: likewise.
        search: likewise.
        out: memory to fill, with the shapes and dtypes of EncodedRows, on the same device; not moved either.

    Returns:
        A call that encodes what `weight` holds at that time, on a GPU in its current stream.
    """
    if supports_nvrtc(weight.device):
        from .cuda_gpu import prepare_encode_cuda

        launch = prepare_encode_cuda(weight, tables, block_size, scale, search, out)
        if launch is not None:
            return launch

    def encode() -> None:
        for into, made in zip(out, encode_rows(weight, tables, block_size, scale, search), strict=True):
            if into is not None and made is not None:
                into.copy_(made)

    return encode
