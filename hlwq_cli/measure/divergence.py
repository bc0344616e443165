"""Divergence of a model's predictions from a reference's: KL divergence and top-1 agreement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from ..errors import UsageError
from ..progress import Progress, ProgressCallback, ignore_progress
from .likelihood import pieces, window_logits
from .perplexity import PairedDelta, Perplexity, paired, perplexity
from .windows import Windows

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_CONFIDENCE_EDGES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class Bucket:
    """Figures of the positions where the reference's highest probability is in [low, high)."""

    low: float
    high: float
    tokens: int
    kld: float
    same_top: float


@dataclass(frozen=True)
class Divergence:
    """KL(reference || model) over the whole vocabulary, per scored position, in nats.

    Attributes:
        mean: mean over the positions where both models have finite logits.
        error: standard error of `mean`.
        percentiles: divergence by percent.
        maximum: largest divergence.
        same_top: fraction of positions where both models have the same most probable token.
        same_top_error: standard error of `same_top`.
        noise_floor: mean KL of the reference against itself with logits moved by half a step of bfloat16, up and down
            in turn. Rounding moves them at most that far, so smaller divergences mean nothing.
        non_finite: number of positions left out because logits are not finite.
        positions: number of positions compared.
        buckets: figures by the reference's confidence.
    """

    mean: float
    error: float
    percentiles: dict[str, float]
    maximum: float
    same_top: float
    same_top_error: float
    noise_floor: float
    non_finite: int
    positions: int
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class Comparison:
    """Figures of a model and a reference over the same windows."""

    perplexity: Perplexity
    reference_perplexity: Perplexity
    delta: PairedDelta
    divergence: Divergence


@dataclass
class _Tally:
    nll: list[torch.Tensor]
    reference_nll: list[torch.Tensor]
    kld: list[torch.Tensor]
    floor: list[torch.Tensor]
    same: list[torch.Tensor]
    confidence: list[torch.Tensor]


def compare(model: Any, reference: Any, windows: Windows, progress: ProgressCallback = ignore_progress) -> Comparison:
    """Run both models window by window; only a few numbers per position are kept.

    Args:
        model: the model.
        reference: the reference, on any device.
        windows: tokens that both models read.
        progress: called after each window.

    Raises:
        UsageError: the vocabularies differ.
    """
    tally = _Tally([], [], [], [], [], [])
    for i, ids in enumerate(windows.ids):
        ours, theirs = window_logits(model, ids), window_logits(reference, ids)
        if ours.shape != theirs.shape:
            raise UsageError(
                f"The reference has a vocabulary of {theirs.shape[-1]}, the model one of {ours.shape[-1]}.",
                "Give the model it was made from.",
            )
        _add(tally, ours, theirs, ids, windows.first)
        progress(Progress("divergence", i + 1, len(windows.ids), "steps"))
    nll, reference_nll = torch.stack(_windows(tally.nll, windows)), torch.stack(_windows(tally.reference_nll, windows))
    return Comparison(perplexity(nll), perplexity(reference_nll), paired(nll, reference_nll), _divergence(tally))


def _windows(parts: list[torch.Tensor], windows: Windows) -> list[torch.Tensor]:
    return list(torch.cat(parts).view(len(windows.ids), -1))


def _add(tally: _Tally, ours: torch.Tensor, theirs: torch.Tensor, ids: torch.Tensor, first: int) -> None:
    for at in pieces(len(ids), first, ours.shape[-1]):
        target = ids[at.start + 1 : at.stop + 1, None].to(ours.device)
        raw = theirs[at].float().to(ours.device)
        log_p = torch.log_softmax(raw, dim=-1)
        log_q = torch.log_softmax(ours[at].float(), dim=-1)
        log_rounded = torch.log_softmax(_moved_by_rounding(raw), dim=-1)
        p = log_p.exp()
        tally.nll.append(-log_q.gather(1, target)[:, 0].double().cpu())
        tally.reference_nll.append(-log_p.gather(1, target)[:, 0].double().cpu())
        tally.kld.append(_kl(p, log_p, log_q))
        tally.floor.append(_kl(p, log_p, log_rounded))
        tally.same.append((log_p.argmax(-1) == log_q.argmax(-1)).cpu())
        tally.confidence.append(p.amax(-1).double().cpu())


def _moved_by_rounding(logits: torch.Tensor) -> torch.Tensor:
    """Move logits by half a step of bfloat16 (8 significant bits), as its rounding could."""
    is_odd = torch.arange(logits.shape[-1], device=logits.device) % 2
    return logits * (1 + 2.0**-9 - is_odd * 2.0**-8)


def _kl(p: torch.Tensor, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return sum p (log p - log q) of each row, summed in float64; a token with p = 0 adds nothing."""
    terms = torch.where(p > 0, p * (log_p - log_q), 0.0)
    return terms.double().sum(-1).cpu()


def _divergence(tally: _Tally) -> Divergence:
    kld, same, confidence = torch.cat(tally.kld), torch.cat(tally.same).double(), torch.cat(tally.confidence)
    ok = kld.isfinite() & confidence.isfinite()
    kept, top = kld[ok].clamp(min=0.0), same[ok]
    n = max(int(ok.sum()), 1)
    floor = torch.cat(tally.floor)
    fraction = float(top.mean()) if len(top) else math.nan
    return Divergence(
        mean=float(kept.mean()),
        error=float(kept.std()) / math.sqrt(n) if n > 1 else math.nan,
        percentiles={f"{q:g}": float(kept.quantile(q / 100)) for q in PERCENTILES} if len(kept) else {},
        maximum=float(kept.max()) if len(kept) else math.nan,
        same_top=fraction,
        same_top_error=math.sqrt(fraction * (1 - fraction) / n),
        noise_floor=float(floor[floor.isfinite()].clamp(min=0.0).mean()),
        non_finite=int((~ok).sum()),
        positions=int(ok.sum()),
        buckets=_buckets(kept, top, confidence[ok]),
    )


def _buckets(kld: torch.Tensor, same: torch.Tensor, confidence: torch.Tensor) -> tuple[Bucket, ...]:
    found = []
    for low, high in pairwise(_CONFIDENCE_EDGES):
        inside = (confidence >= low) & ((confidence < high) if high < 1 else (confidence <= 1.0 + 1e-6))
        n = int(inside.sum())
        if n:
            found.append(Bucket(low, high, n, float(kld[inside].mean()), float(same[inside].mean())))
    return tuple(found)
