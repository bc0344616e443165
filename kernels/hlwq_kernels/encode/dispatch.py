"""Encode rows of weights: rotate each block, choose its scale, code it, pack the codes.

The arithmetic, which every implementation follows to the bit (float32 throughout, no fused multiply-add):

1. A row is scaled by a power of two so that its largest weight lies in [1, 2). Rows below 2^-110 become zero.
2. Per block of n: z = hadamard(w) * (1 / sqrt(n)); the block's energy is the tree sum of z^2.
3. `log8`: base = the largest of (rms * 2^(12/32), max|z| / c_max) over the row's blocks, rounded up to bf16. The
   scale candidates are k0 - 16 .. k0 + 12, k0 the largest step not above rms / base, and the step not above
   max|z| / c_max / base, at which the largest coefficient meets the outermost centroid.
   `fp16`: candidates are the block's L2 norm times 2^(j/32), rounded to float16.
   Without search the only candidate is, for `log8`, the step nearest to the rms (the largest not above
   rms * 2^(0.5/32)), and for `fp16` the norm itself, which is the published method.
4. The first candidate of least error wins; the scale is zero if coding errs no less than dropping the block.
5. code = the first whose boundary is not below z * (1 / s).
6. Blocks' errors and energies are cut to multiples of 2^-36 and summed over a row as integers: the same in any order.
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
        search: try 30 scales a block and keep the best, rather than one.
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
    """For many matrices of one shape: a call that encodes what `weight` then holds, on a GPU's then current stream.

    Beside a GPU's milliseconds, making new tensors and finding the kernel for each would count.

    Args:
        weight: (rows, columns), memory that is filled before each call and stays where it is.
        tables: see `encode_rows`.
        block_size: likewise.
        scale: likewise.
        search: likewise.
        out: memory to fill, of the shapes and types of EncodedRows, on the same device; it stays where it is, too.

    Returns:
        The call.
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
