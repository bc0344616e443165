"""y = x W^T + b from codes.

Rotating activations instead of weights: H is symmetric and orthogonal, so x . (H v) = (H x) . v for every block, and
one row costs n log n additions once, where rotating the weight would cost that for every output row. A few rows are
multiplied by codes as they are; for many, decoding the weight first costs less than the product does.
"""

from __future__ import annotations

import numpy as np
import torch

from ..codes import QuantizedWeight, block_scales, hadamard, unpack_codes
from ..common import traceable
from ..decode import decode_rows
from .gemm_small_m import MAX_FUSED_TOKENS, multiply_codes, supports_gemm_small_m

_TILE_WEIGHTS = 2**22
"""Weights that the reference decodes at once; bounds its memory. Not measured."""
_DECODED_WEIGHTS = 2**28
"""Weights that a CUDA device decodes at once: 512 MiB in bfloat16; bounds memory. Not measured."""


def coded_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply activations by a coded weight.

    Where gradients or torch.compile need it, this is a `torch.library` custom op with gradients for `x` and `bias`.

    Args:
        x: (..., in), floating.
        codes: uint8 (out, padded * bits / 8).
        scales: uint8 or float16 (out, padded / block_size).
        base: bfloat16 (out,), or None with float16 scales.
        centroids: float32 (2^bits,), on the device of `codes`.
        block_size: n.
        bias: (out,), of the dtype of `x`.

    Returns:
        (..., out), in the dtype of `x`.
    """
    learns = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    run = _linear_op if learns else _linear
    y: torch.Tensor = run(x, codes, scales, base, centroids, block_size, bias)
    return y


def _linear_on_its_device(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    weight, rows = QuantizedWeight(codes, scales, base, centroids, block_size), x.reshape(-1, x.shape[-1])
    if not rows.shape[0]:
        y = x.new_empty(0, codes.shape[0])
    elif len(rows) <= MAX_FUSED_TOKENS and supports_gemm_small_m(x):
        y = multiply_codes(rows, weight, bias)
    elif x.is_cuda:
        y = _decode_and_multiply(rows, weight, bias)
    else:
        y = coded_linear_reference(rows, weight, bias)
    return y.reshape(*x.shape[:-1], codes.shape[0])


_linear_op = torch.library.custom_op("hlwq::coded_linear", _linear_on_its_device, mutates_args=())
_linear = traceable(_linear_op, _linear_on_its_device)


@_linear_op.register_fake
def _(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    base: torch.Tensor | None,
    centroids: torch.Tensor,
    block_size: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def _keep(ctx: object, inputs: tuple[object, ...], output: torch.Tensor) -> None:
    x, codes, scales, base, centroids, block_size, _ = inputs
    assert isinstance(x, torch.Tensor)
    ctx.save_for_backward(codes, scales, base, centroids)  # type: ignore[attr-defined]
    ctx.block_size, ctx.columns = block_size, x.shape[-1]  # type: ignore[attr-defined]


def _gradient(ctx: object, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    codes, scales, base, centroids = ctx.saved_tensors  # type: ignore[attr-defined]
    weight = decode_rows(codes, scales, base, centroids, ctx.block_size, ctx.columns, grad.dtype)  # type: ignore[attr-defined]
    of_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[6] else None  # type: ignore[attr-defined]
    return grad @ weight, None, None, None, None, None, of_bias


_linear_op.register_autograd(_gradient, setup_context=_keep)


def _decode_and_multiply(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """Decode up to _DECODED_WEIGHTS weights at a time and multiply by them."""
    step = max(1, _DECODED_WEIGHTS // weight.padded)
    parts = []
    for first in range(0, len(weight.codes), step):
        rows = slice(first, first + step)
        base = None if weight.base is None else weight.base[rows]
        decoded = decode_rows(
            weight.codes[rows], weight.scales[rows], base, weight.centroids, weight.block_size, x.shape[1], x.dtype
        )
        parts.append(torch.nn.functional.linear(x, decoded, None if bias is None else bias[rows]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def rotate_activation(x: torch.Tensor, block_size: int) -> torch.Tensor:
    """Pad the last dimension to whole blocks and rotate each: (..., in) to (..., padded), same dtype.

    The butterflies run in float32, whatever the dtype.
    """
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % block_size))
    blocks = padded.to(torch.float32).reshape(*padded.shape[:-1], padded.shape[-1] // block_size, block_size)
    return (hadamard(blocks) * float(np.float32(block_size**-0.5))).reshape(padded.shape).to(x.dtype)


def coded_linear_reference(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute `coded_linear` in plain torch, a few rows of the weight at a time: (rows, in) to (rows, out)."""
    rotated = rotate_activation(x, weight.block_size)
    step = max(1, _TILE_WEIGHTS // rotated.shape[-1])
    parts = []
    for first in range(0, len(weight.codes), step):
        rows = slice(first, first + step)
        s = block_scales(weight.scales[rows], None if weight.base is None else weight.base[rows], weight.block_size)
        values = weight.centroids[unpack_codes(weight.codes[rows], weight.bits).to(torch.int32)]
        tile = (values.reshape(*s.shape, weight.block_size) * s[..., None]).flatten(1)
        parts.append(torch.nn.functional.linear(rotated, tile.to(x.dtype)))
    y = torch.cat(parts, dim=-1)
    return y if bias is None else y + bias
