"""RMS norms of a decode step, fused with the additions around them: launches of decode_step/norms.cu.

For one token a launch costs more than what it computes. As transformers writes it, the 26B Gemma 4 takes 53 launches
per layer, of which 9 multiply by weights. The kernels round every intermediate value that torch would store.
"""

from __future__ import annotations

import ctypes

import torch

from ..codes import ceil_div
from ..common import DTYPE_IDS, CudaKernel, Macros, dtype_macros, supports_nvrtc
from .reference import fused_add_rmsnorm_post_ffn_reference, fused_add_rmsnorm_pre_ffn_reference
from .types import Norm

_PRE_FFN = CudaKernel("decode_step/norms.cu", name="fused_add_rmsnorm_pre_ffn")
_POST_FFN = CudaKernel("decode_step/norms.cu", name="fused_add_rmsnorm_post_ffn")


def supports_decode_step(x: torch.Tensor) -> bool:
    """Return whether the kernels of a decode step support rows like `x` (rows, columns).

    A CTA of `norms.cu` holds a row, eight columns per thread: at most 1,024 threads, so 8192 columns.
    """
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
    """Compute sum = residual + norm(x) after attention, and the norms of the sum that the layer needs.

    Args:
        x: (rows, columns).
        residual: (rows, columns).
        norm: of x.
        for_dense: of the sum.
        for_experts: of the sum, or None where there are no experts.
        router_scale: (columns,), the factor of the router's norm of the sum, which has no weight; or None likewise.
        router_root: another factor of the router's norm.

    Returns:
        The sum and its norms for the dense layer, the experts and their router; (rows, columns) each. The last two are
        None where there are no experts.
    """
    if not supports_decode_step(x):
        return fused_add_rmsnorm_pre_ffn_reference(x, residual, norm, for_dense, for_experts, router_scale, router_root)
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
    """Compute (residual + norm(norm(dense) + norm(experts))) * scalar after a layer, and the next layer's norm of it.

    Args:
        dense: (rows, columns).
        experts: (rows, columns), or None where there are none; then `norm` is applied to `dense` directly.
        residual: (rows, columns).
        of_dense: of `dense`, where there are experts.
        of_experts: of `experts`, where there are experts.
        norm: of the sum.
        scalar: (1,).
        following: the first norm of the next layer, or None.

    Returns:
        (rows, columns) each, the second None without `following`.
    """
    if not supports_decode_step(dense):
        return fused_add_rmsnorm_post_ffn_reference(
            dense, experts, residual, of_dense, of_experts, norm, scalar, following
        )
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
    """Return the threads of a CTA: one for eight columns, in whole warps."""
    return ceil_div(x.shape[-1], 256) * 32


def _macros(x: torch.Tensor) -> Macros:
    return (*dtype_macros(x), ("THREADS", _threads(x)), ("COLUMNS", x.shape[-1]))
