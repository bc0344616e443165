"""The weighed sum of the rows that each token's experts gave, without bringing them into order first."""

from __future__ import annotations

import torch

from ..common.cuda_kernel import CudaKernel, Macros, runs_nvrtc
from ..common.device import DTYPE_IDS

_WEIGH = CudaKernel("moe/combine.cu", name="weigh_rows")
_DTYPES = (torch.bfloat16, torch.float16)
_THREADS = 352


def weigh_rows(rows: torch.Tensor, place: torch.Tensor, routed: torch.Tensor) -> torch.Tensor:
    """y[t] = sum over j of routed[t, j] * rows[place[t, j]], in float32.

    Args:
        rows: (pairs, columns), floating.
        place: int64 (tokens, k), the row of each pair; a negative one counts for nothing.
        routed: float32 (tokens, k).

    Returns:
        (tokens, columns), in the dtype of `rows`.
    """
    y = rows.new_empty(len(place), rows.shape[1])
    if rows.dtype not in _DTYPES or rows.shape[1] % 8 or not runs_nvrtc(rows.device):
        return weigh_rows_torch(rows, place, routed)
    if y.numel():
        kind = DTYPE_IDS[rows.dtype]
        macros: Macros = (("INPUT", kind), ("OUTPUT", kind), ("THREADS", _THREADS))
        _WEIGH.launch(
            y.device,
            macros,
            (len(y),),
            _THREADS,
            rows,
            rows.shape[1],
            place.contiguous(),
            routed.contiguous(),
            place.shape[1],
            y,
        )
    return y


def weigh_rows_torch(rows: torch.Tensor, place: torch.Tensor, routed: torch.Tensor) -> torch.Tensor:
    """The torch twin."""
    y = torch.zeros(len(place), rows.shape[1], dtype=torch.float32, device=rows.device)
    if not len(rows):
        return y.to(rows.dtype)
    for at, share in zip(place.unbind(1), routed.unbind(1), strict=True):
        y += torch.where(at[:, None] < 0, 0.0, share[:, None] * rows[at.clamp(min=0)].float())
    return y.to(rows.dtype)
