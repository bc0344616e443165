"""RMS norms of a decode step, fused with the additions around them: decode_step/norms.cu, each with its reference.

At one token a launch costs more than what it computes: the 26B Gemma 4 takes 53 launches a layer as transformers writes
it, of which 9 multiply by weights. Whatever torch would round in between is rounded here as there.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch.nn.functional import rms_norm

from ..codes import ceil_div
from ..common import DTYPE_IDS, CudaKernel, Macros, dtype_macros, supports_nvrtc

_PRE_FFN = CudaKernel("decode_step/norms.cu", name="fused_add_rmsnorm_pre_ffn")
_POST_FFN = CudaKernel("decode_step/norms.cu", name="fused_add_rmsnorm_post_ffn")


class Norm(NamedTuple):
    """An RMS norm: weight (columns,) or None, and what is added to the mean square."""

    weight: torch.Tensor | None
    eps: float

    def torch(self, x: torch.Tensor) -> torch.Tensor:
        """As torch has it."""
        return rms_norm(x, x.shape[-1:], self.weight, self.eps)


def supports_decode_step(x: torch.Tensor) -> bool:
    """Whether rows like `x` (rows, columns) are computed by these kernels, and not by their twins."""
    return x.shape[-1] % 8 == 0 and x.shape[-1] <= 8192 and x.dtype in DTYPE_IDS and supports_nvrtc(x.device)


def fused_add_rmsnorm_pre_ffn(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm: Norm,
    for_dense: Norm,
    for_experts: Norm | None,
    router_scale: torch.Tensor | None,
    router_root: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Between attention and what follows: sum = residual + norm(x), and norms of it.

    Args:
        x: (rows, columns).
        residual: (rows, columns).
        norm: of x.
        for_dense: of the sum.
        for_experts: of the sum, or None where there are no experts.
        router_scale: (columns,), by which a norm of the sum without weight is multiplied, or None likewise.
        router_root: a factor of that, too.

    Returns:
        The sum, its norm for the dense layer, for the experts, for their router; (rows, columns) each.
    """
    if not supports_decode_step(x):
        total = residual + norm.torch(x)
        if for_experts is None or router_scale is None:
            return total, for_dense.torch(total), None, None
        router_input = Norm(None, norm.eps).torch(total) * router_scale * router_root
        return total, for_dense.torch(total), for_experts.torch(total), router_input
    routes = for_experts is not None
    total, dense = torch.empty_like(x), torch.empty_like(x)
    experts, router = (torch.empty_like(x), torch.empty_like(x)) if routes else (None, None)
    _PRE_FFN.launch(
        x.device,
        _macros(x),
        (len(x),),
        _threads(x),
        x,
        residual,
        norm.weight,
        for_dense.weight,
        None if for_experts is None else for_experts.weight,
        router_scale,
        ctypes.c_float(router_root),
        ctypes.c_float(norm.eps),
        total,
        dense,
        experts,
        router,
        overlap=True,
    )
    return total, dense, experts, router


def fused_add_rmsnorm_post_ffn(
    dense: torch.Tensor,
    experts: torch.Tensor | None,
    residual: torch.Tensor,
    of_dense: Norm | None,
    of_experts: Norm | None,
    norm: Norm,
    scalar: torch.Tensor,
    following: Norm | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Behind a layer: (residual + norm(norm(dense) + norm(experts))) * scalar, and the next layer's norm of that.

    Args:
        dense: (rows, columns).
        experts: (rows, columns), or None where there are none; then the norm is of `dense` as it is.
        residual: (rows, columns).
        of_dense: of `dense`, where there are experts.
        of_experts: of `experts`, where there are.
        norm: of the sum.
        scalar: (1,).
        following: or None.

    Returns:
        (rows, columns) each, the second None without `following`.
    """
    if not supports_decode_step(dense):
        y = dense
        if experts is not None and of_dense is not None and of_experts is not None:
            y = of_dense.torch(dense) + of_experts.torch(experts)
        out = (residual + norm.torch(y)) * scalar
        return out, None if following is None else following.torch(out)
    out, follows = torch.empty_like(dense), None if following is None else torch.empty_like(dense)
    weights = [None if n is None else n.weight for n in (of_dense, of_experts, norm)]
    _POST_FFN.launch(
        dense.device,
        _macros(dense),
        (len(dense),),
        _threads(dense),
        dense,
        experts,
        residual,
        *weights,
        scalar,
        None if following is None else following.weight,
        ctypes.c_float(norm.eps),
        out,
        follows,
        overlap=True,
    )
    return out, follows


def _threads(x: torch.Tensor) -> int:
    return ceil_div(x.shape[-1], 256) * 32


def _macros(x: torch.Tensor) -> Macros:
    return (*dtype_macros(x), ("THREADS", _threads(x)), ("COLUMNS", x.shape[-1]))
