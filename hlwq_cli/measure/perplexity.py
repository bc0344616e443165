"""Perplexity, its standard error, and the paired error of a difference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..progress import Progress, ProgressCallback, ignore_progress
from .likelihood import token_nlls, window_logits
from .windows import Windows


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood over scored tokens.

    Attributes:
        value: the perplexity.
        error: its standard error, value * sd(nll) / sqrt(tokens): first order, tokens taken as independent.
        nll: mean, in nats.
        tokens: how many were scored.
        non_finite: tokens whose likelihood is not a finite number; they are left out of the mean.
    """

    value: float
    error: float
    nll: float
    tokens: int
    non_finite: int


@dataclass(frozen=True)
class PairedDelta:
    """How a model differs from a reference on the same tokens.

    Attributes:
        log_ratio: ln(PPL / PPL of the reference), the mean difference in nats.
        error: its standard error from the differences token by token, far below that of either perplexity.
        difference: PPL - PPL of the reference.
    """

    log_ratio: float
    error: float
    difference: float


def score(model: Any, windows: Windows, progress: ProgressCallback = ignore_progress) -> torch.Tensor:
    """-log p of every scored token of every window, float64 (windows, scored)."""
    rows = []
    for i, ids in enumerate(windows.ids):
        rows.append(token_nlls(window_logits(model, ids), ids, windows.first))
        progress(Progress("perplexity", i + 1, len(windows.ids), "steps"))
    return torch.stack(rows)


def perplexity(nlls: torch.Tensor) -> Perplexity:
    """The perplexity of token likelihoods; see `score`."""
    finite = nlls[nlls.isfinite()].double()
    if not finite.numel():
        return Perplexity(math.nan, math.nan, math.nan, 0, nlls.numel())
    mean = float(finite.mean())
    value = math.exp(mean)
    deviation = float(finite.std()) if finite.numel() > 1 else math.nan
    return Perplexity(
        value, value * deviation / math.sqrt(finite.numel()), mean, finite.numel(), nlls.numel() - finite.numel()
    )


def paired(nlls: torch.Tensor, reference: torch.Tensor) -> PairedDelta:
    """Compare token likelihoods with a reference's on the same tokens; tokens not finite in either are left out."""
    both = nlls.isfinite() & reference.isfinite()
    a, b = nlls[both].double(), reference[both].double()
    differences = a - b
    error = float(differences.std()) / math.sqrt(differences.numel()) if differences.numel() > 1 else math.nan
    return PairedDelta(float(differences.mean()), error, math.exp(float(a.mean())) - math.exp(float(b.mean())))
