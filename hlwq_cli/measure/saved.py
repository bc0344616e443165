"""Save a report in the folder of its checkpoint, for the card: hlwq_bench.json and hlwq_bench.png.

The results contain the checkpoint's digest, so that they cannot be used for another checkpoint.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .._version import __version__
from ..checkpoint.format import (
    CHART,
    MANIFEST,
    RESULTS,
    Manifest,
    file_record,
    read_manifest,
    write_file,
)
from ..checkpoint.io import is_repo_id, locked_folder
from ..errors import UsageError
from .chart import draw
from .report import BenchReport, Measured


def check_savable(paths: list[str]) -> None:
    """Raise UsageError if a path is not the folder of a coded checkpoint."""
    for path in paths:
        if not (Path(path) / MANIFEST).is_file():
            raise UsageError(f"--save needs folders of coded checkpoints, and {path} is not one.", "Omit --save.")


def save_report(report: BenchReport) -> tuple[Path, ...]:
    """Write each measured checkpoint's results and chart into its folder, and their hashes into its manifest."""
    return tuple(_save(report, m) for m in report.measured)


def _save(report: BenchReport, measured: Measured) -> Path:
    folder = Path(measured.path)
    with locked_folder(folder):
        return _save_into(folder, report, measured)


def _save_into(folder: Path, report: BenchReport, measured: Measured) -> Path:
    manifest = read_manifest(folder)
    document = json.dumps(_document(report, measured, manifest), indent=1, ensure_ascii=False)
    write_file(folder / RESULTS, (document + "\n").encode(errors="replace"))
    with tempfile.TemporaryDirectory() as scratch:
        light, _ = draw(replace(report, measured=(measured,)), Path(scratch) / CHART)
        write_file(folder / CHART, light.read_bytes())
    records = [file_record(folder, name) for name in (RESULTS, CHART)]
    write_file(folder / MANIFEST, manifest.with_files(records).dump())
    return folder / RESULTS


def _document(report: BenchReport, measured: Measured, manifest: Manifest) -> dict[str, Any]:
    protocol = report.protocol
    return {
        "schema": 1,
        "checkpoint": manifest.digest,
        "tool": {"name": "hlwq", "version": __version__},
        "date": datetime.now(UTC).date().isoformat(),
        "protocol": None if protocol is None else {"line": protocol.line, **asdict(protocol)},
        "reference": None if report.reference is None else _public(report.reference),
        "measured": _public(measured),
    }


def _public(measured: Measured) -> dict[str, Any]:
    """Return the figures with the folder's name instead of its path, which is private."""
    is_repo = is_repo_id(measured.path) and not Path(measured.path).exists()
    return asdict(replace(measured, path=measured.path if is_repo else Path(measured.path).resolve().name))
