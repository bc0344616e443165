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
    """Perplexity: exp of the mean negative log-likelihood of the scored tokens.

    Attributes:
        value: the perplexity.
        error: standard error, value * sd(nll) / sqrt(tokens), to first order for independent tokens.
        nll: mean negative log-likelihood, in nats.
        tokens: number of tokens in the mean.
        non_finite: number of tokens left out because their likelihood is not finite.
    """

    value: float
    error: float
    nll: float
    tokens: int
    non_finite: int


@dataclass(frozen=True)
class PairedDelta:
    """Difference of a model's perplexity from a reference's on the same tokens.

    Attributes:
        log_ratio: ln(PPL / PPL of the reference), the mean difference in nats.
        error: standard error of `log_ratio`, from the difference at each token; much smaller than that of each PPL.
        difference: PPL - PPL of the reference.
    """

    log_ratio: float
    error: float
    difference: float


def score(model: Any, windows: Windows, progress: ProgressCallback = ignore_progress) -> torch.Tensor:
    """Return -log p of every scored token of every window: float64 (windows, scored)."""
    rows = []
    for i, ids in enumerate(windows.ids):
        rows.append(token_nlls(window_logits(model, ids), ids, windows.first))
        progress(Progress("perplexity", i + 1, len(windows.ids), "steps"))
    return torch.stack(rows)


def perplexity(nlls: torch.Tensor) -> Perplexity:
    """Return the perplexity of the likelihoods from `score`."""
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
    """Compare likelihoods with a reference's on the same tokens; tokens that are not finite in both are left out."""
    both = nlls.isfinite() & reference.isfinite()
    a, b = nlls[both].double(), reference[both].double()
    differences = a - b
    error = float(differences.std()) / math.sqrt(differences.numel()) if differences.numel() > 1 else math.nan
    return PairedDelta(float(differences.mean()), error, math.exp(float(a.mean())) - math.exp(float(b.mean())))
