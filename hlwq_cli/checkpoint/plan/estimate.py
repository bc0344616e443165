"""Estimate what a plan needs: bytes by tensor and role, disk and memory."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass

from ..io import SLICE_WEIGHTS
from .coverage import plan_warnings
from .plan import Plan
from .planned import CodedTensor, KeptTensor, PlannedTensor

_IMPORTS_BYTES = 450_000_000
_WORKER_BYTES = SLICE_WEIGHTS * 24


@dataclass(frozen=True)
class PlanLine:
    """The decision about one tensor, in words."""

    name: str
    role: str
    shape: tuple[int, ...]
    decision: str
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """A plan in numbers.

    Attributes:
        rule: how roles were found.
        source_bytes: of the source's weights.
        output_bytes: of the result's weights.
        bits_per_weight: of coded tensors.
        unquantized_share: share of the source's bytes that stays uncoded.
        disk_bytes: needed in the output folder.
        memory_bytes: about what a run holds, Python and torch included.
        roles: coded matrices, kept tensors and bytes written, by role.
        tensors: a line each, dropped ones included.
        warnings: sentences about files that are left out, and about matrices that stay uncoded.
    """

    rule: str
    source_bytes: int
    output_bytes: int
    bits_per_weight: float
    unquantized_share: float
    disk_bytes: int
    memory_bytes: int
    roles: dict[str, dict[str, int]]
    tensors: tuple[PlanLine, ...]
    warnings: tuple[str, ...]


def estimate(plan: Plan, threads: int | None = None) -> Estimate:
    """Estimate a plan that runs on `threads` threads, by default one per processor."""
    workers = threads or os.cpu_count() or 1
    roles: dict[str, dict[str, int]] = defaultdict(lambda: {"coded": 0, "kept": 0, "bytes": 0})
    for planned in plan.tensors:
        counts = roles[planned.role]
        counts["coded"] += planned.matrices if isinstance(planned, CodedTensor) else 0
        counts["kept"] += isinstance(planned, KeptTensor)
        counts["bytes"] += planned.nbytes
    lines = [_line(planned) for planned in plan.tensors]
    lines += [PlanLine(d.info.name, d.role, d.info.shape, f"dropped: {d.reason}", 0) for d in plan.dropped]
    return Estimate(
        rule=plan.rule,
        source_bytes=plan.source_bytes,
        output_bytes=plan.output_bytes,
        bits_per_weight=plan.bits_per_weight,
        unquantized_share=plan.unquantized_share,
        disk_bytes=plan.output_bytes + plan.source.sidecar_bytes + 64 * 2**20,
        memory_bytes=_IMPORTS_BYTES + (2 * workers + 1) * _WORKER_BYTES,
        roles=dict(roles),
        tensors=tuple(lines),
        warnings=plan_warnings(plan),
    )


def _line(planned: PlannedTensor) -> PlanLine:
    if isinstance(planned, KeptTensor):
        info = planned.info
        return PlanLine(info.name, planned.role, info.shape, f"{info.dtype}: {planned.reason}", info.nbytes)
    stack = f", {len(planned.parts)} matrices stacked" if len(planned.parts) > 1 else ""
    return PlanLine(planned.name, planned.role, planned.shape, f"{planned.scheme.bits} bits{stack}", planned.nbytes)
