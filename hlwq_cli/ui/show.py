"""Results of quantize, inspect and push, for people."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..sizes import format_size
from .sink import Sink

if TYPE_CHECKING:
    from ..checkpoint import DiffReport, Estimate, InspectReport, QuantizeResult, VerifyReport
    from ..hub import PushResult


def show_plan(sink: Sink, plan: Estimate) -> None:
    """Show how each tensor is coded or why it is kept, then sizes, disk and memory."""

    def human(console: Console) -> None:
        table = Table(box=None, header_style="bold")
        for column in ("tensor", "role", "shape", "coded", "bytes"):
            table.add_column(column, justify="right" if column == "bytes" else "left", overflow="fold")
        for line in plan.tensors:
            table.add_row(line.name, line.role, "x".join(map(str, line.shape)), line.decision, f"{line.bytes:,}")
        console.print(table)
        _summary(console, plan.roles)
        console.print(f"Roles by: {plan.rule}.")
        console.print(
            f"{format_size(plan.source_bytes)} become {format_size(plan.output_bytes)}; coded at "
            f"{plan.bits_per_weight:.3f} bits per weight; {plan.unquantized_share:.1%} of the bytes stay uncoded."
        )
        console.print(
            f"Needs {format_size(plan.disk_bytes)} of disk and about {format_size(plan.memory_bytes)} of memory."
        )

    sink.result("plan", plan, human, str(plan.output_bytes))
    _warn(sink, plan.warnings)


def _warn(sink: Sink, warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        sink.note(f"Warning: {warning}")


def _summary(console: Console, roles: dict[str, dict[str, int]]) -> None:
    for role, counts in roles.items():
        coded, kept = counts["coded"], counts["kept"]
        console.print(f"{role}: {coded} matrices coded, {kept} tensors kept, {format_size(counts['bytes'])}")


def show_quantized(sink: Sink, result: QuantizeResult) -> None:
    """Show the result of a run."""
    m = result.manifest
    total = m.output_bytes

    def human(console: Console) -> None:
        if result.already_complete:
            console.print(f"{result.path} is complete already; nothing was done.")
        if result.resumed_shards:
            console.print(f"Continued after {result.resumed_shards} finished shards.")
        console.print(
            f"{result.path}: {format_size(m.source_bytes)} became {format_size(total)}; {len(m.coded)} tensors "
            f"coded at {m.bits_per_weight:.3f} bits per weight, {len(m.kept)} kept; "
            f"{result.unquantized_share:.1%} of the bytes stayed uncoded."
        )
        if m.coded:
            worst = max(m.coded, key=lambda t: t.nmse)
            console.print(f"Largest relative squared error: {worst.nmse:.2e} ({worst.name}).")
        if m.calibration is not None:
            from ..checkpoint import describe_calibration

            without = len(m.calibration.get("without_moments", ()))
            console.print(
                f"Calibrated on {describe_calibration(m.calibration)}"
                + (f"; {without} coded tensors had no moments." if without else ".")
            )
        console.print(f"Next: hlwq inspect {result.path} --verify")

    value = {
        "path": str(result.path), "source_bytes": m.source_bytes, "bytes": total, "coded": len(m.coded),
        "kept": len(m.kept), "bits_per_weight": m.bits_per_weight, "unquantized_share": result.unquantized_share,
        "resumed_shards": result.resumed_shards, "already_complete": result.already_complete,
        "warnings": result.warnings,
    }  # fmt: skip
    sink.result("quantize", value, human, str(result.path))
    _warn(sink, result.warnings)


def show_inspected(sink: Sink, report: InspectReport) -> None:
    """Show a checkpoint tensor by tensor, and its totals."""
    from ..checkpoint import describe_calibration

    def human(console: Console) -> None:
        table = Table(box=None, header_style="bold")
        numbers = ("bits", "bytes", "nmse") + (("loss",) if report.calibration else ())
        for column in ("tensor", "role", "shape", *numbers):
            table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
        for t in report.coded:
            loss = "" if t.loss is None else f"{t.loss:.2e}"
            cells = t.name, t.role, "x".join(map(str, t.shape)), str(t.bits), f"{t.bytes:,}", f"{t.nmse:.2e}", loss
            table.add_row(*cells[: 3 + len(numbers)])
        for k in report.kept:
            table.add_row(k.name, k.role, "x".join(map(str, k.shape)), k.dtype, f"{k.bytes:,}", "exact", style="dim")
        console.print(table)
        revision = f" at {report.source['revision']}" if report.source["revision"] else ""
        console.print(f"Made from {report.source['id']}{revision}; roles by {report.rule}.")
        if report.calibration:
            console.print(f"Calibrated on {describe_calibration(report.calibration)}.")
        console.print(f"Coded matrices: {', '.join(f'{n} {role}' for role, n in report.matrices.items())}.")
        _histogram(console, report.bits)
        console.print(
            f"{report.bits_per_weight:.3f} bits per weight in blocks of {report.block_size}, {report.scale} scales; "
            f"coded {format_size(report.coded_bytes)}, kept {format_size(report.kept_bytes)} "
            f"({report.kept_share:.1%} of the source's {format_size(report.source_bytes)})."
        )

    sink.result("inspect", report, human, f"{report.bits_per_weight}")


def _histogram(console: Console, bits: dict[int, int]) -> None:
    total = sum(bits.values())
    for width, weights in bits.items():
        console.print(f"{width} bits  {'#' * max(1, round(40 * weights / total)):<40}  {weights:,} weights")


def show_verified(sink: Sink, report: VerifyReport) -> None:
    """Show the result of checking hashes and scales."""

    def human(console: Console) -> None:
        for problem in report.problems:
            console.print(f"- {problem}")
        console.print(f"{report.files} files, {format_size(report.bytes)}: {report.verdict}.")

    sink.result("verify", report, human, "ok" if not report.problems else "broken")


def show_diff(sink: Sink, report: DiffReport) -> None:
    """Show where two checkpoints differ."""

    def human(console: Console) -> None:
        groups: dict[str, list[str]] = defaultdict(list)
        groups["only in the first"] = list(report.only_first)
        groups["only in the second"] = list(report.only_second)
        groups["coded differently"] = [f"{name}: {how}" for name, how in report.recoded]
        groups["different bytes"] = list(report.changed)
        for title, names in groups.items():
            for name in names:
                console.print(f"{title}: {name}")
        console.print(f"{report.same} tensors are the same.")

    sink.result("diff", report, human, "same" if report.identical else "different")


def show_pushed(sink: Sink, result: PushResult) -> None:
    """Show where a checkpoint was pushed to, and which files were sent."""

    def human(console: Console) -> None:
        if result.dry_run:
            kind = "private" if result.private else "public"
            where = f"a new {kind} repository {result.repo}" if result.created else f"{result.repo}, {kind}"
            console.print(f"Would send to {where}, at {result.revision}:")
            for name in result.sent:
                console.print(f"  {name}")
            for name in result.removed:
                console.print(f"  {name}: removed")
        verb = "to send" if result.dry_run else "sent"
        console.print(
            f"{len(result.sent)} files {verb}, {format_size(result.sent_bytes)}; {result.unchanged} already there."
        )
        console.print(result.url)

    sink.result("push", result, human, result.url)
