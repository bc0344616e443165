"""Log-probabilities of windows, computed for a few positions at a time.

So no float32 tensor (window, vocabulary) is ever allocated.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import UnsupportedError
from ..runtime.decode import as_unsupported

_VALUES_AT_ONCE = 2**25


def window_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits (window, vocabulary) of one window (window,), in the model's dtype, on its device.

    Raises:
        UnsupportedError: the model does not run on text alone, or does not predict a token at each position.
    """
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    name = type(model).__name__
    with torch.inference_mode(), as_unsupported(f"{name} does not run on text alone", "Use --cosine."):
        logits: torch.Tensor = model(input_ids=ids[None].to(model.device), **options).logits[0]
    if logits.ndim != 2 or len(logits) != len(ids):
        raise UnsupportedError(f"{name} does not predict a token at each position of a text.", "Use --cosine.")
    return logits


def pieces(window: int, first: int, vocabulary: int) -> Iterator[slice]:
    """Yield the positions that predict the scored tokens `first` .. window - 1, in slices that fit in memory."""
    step = max(1, _VALUES_AT_ONCE // vocabulary)
    for start in range(first - 1, window - 1, step):
        yield slice(start, min(start + step, window - 1))


def token_nlls(logits: torch.Tensor, ids: torch.Tensor, first: int) -> torch.Tensor:
    """Return -log p of each scored token: float64 (window - first,), on the CPU. The log-softmax is in float32."""
    parts = []
    for at in pieces(len(ids), first, logits.shape[-1]):
        log_p = torch.log_softmax(logits[at].float(), dim=-1)
        target = ids[at.start + 1 : at.stop + 1].to(log_p.device)
        parts.append(-log_p.gather(1, target[:, None])[:, 0].double().cpu())
    return torch.cat(parts)
