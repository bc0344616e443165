"""Limits on a checkpoint's figures, for CI jobs."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from .report import BenchReport, Measured


@dataclass(frozen=True)
class Gates:
    """Limits; None means no limit.

    Attributes:
        max_ppl_delta: maximum of ln(PPL / PPL of the reference).
        max_kld: maximum of the mean KL divergence, in nats.
        min_top1: minimum of the top-1 agreement, 0 to 1.
    """

    max_ppl_delta: float | None = None
    max_kld: float | None = None
    min_top1: float | None = None

    def check_measured(self, *, ppl: bool, kld: bool, ref: str | None) -> None:
        """Raise UsageError if a limit is set on a figure that is not measured."""
        if self.max_ppl_delta is not None and not ((ppl or kld) and ref):
            raise UsageError("--max-ppl-delta needs --ppl and --ref.")
        if (self.max_kld is not None or self.min_top1 is not None) and not kld:
            raise UsageError("--max-kld and --min-top1 need --kld and --ref.")


def check_gates(report: BenchReport, gates: Gates) -> tuple[str, ...]:
    """Return a clause for every limit that a checkpoint misses."""
    return tuple(clause for m in report.measured for clause in _missed(m, gates))


def _missed(m: Measured, gates: Gates) -> list[str]:
    found = []
    if gates.max_ppl_delta is not None and m.delta and not m.delta.log_ratio <= gates.max_ppl_delta:
        found.append(f"{m.path}: ln PPL rose by {m.delta.log_ratio:.4f}, limit {gates.max_ppl_delta:g}")
    if gates.max_kld is not None and m.divergence and not m.divergence.mean <= gates.max_kld:
        found.append(f"{m.path}: KL divergence {m.divergence.mean:.4f}, limit {gates.max_kld:g}")
    if gates.min_top1 is not None and m.divergence and not m.divergence.same_top >= gates.min_top1:
        found.append(f"{m.path}: top-1 agreement {m.divergence.same_top:.3f}, limit {gates.min_top1:g}")
    return found
