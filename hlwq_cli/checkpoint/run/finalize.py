"""The end of a run: write all files other than weights, then the manifest, which marks the checkpoint as finished."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..._version import __version__
from ..format import (
    JOURNAL,
    MANIFEST,
    FileRecord,
    Manifest,
    Shard,
    ShardRecord,
    file_record,
    model_card,
    write_file,
    write_index,
    write_json,
)
from ..io import INDEX
from ..plan import Plan
from .calibration import Calibration
from .output_folder import PRIVATE_SOURCE, copy_sidecar_files, quantization_config


def finalize(
    plan: Plan,
    out: Path,
    shards: Sequence[Shard],
    records: Sequence[ShardRecord],
    fingerprint: dict[str, Any],
    calibrated: tuple[Calibration, Mapping[str, str]] | None = None,
) -> Manifest:
    """Write all that is not weights, then the manifest, then forget the journal and what was fetched.

    Args:
        plan: of the run.
        out: its folder, which holds the shards.
        shards: of the checkpoint.
        records: of those shards, in their order.
        fingerprint: of the run.
        calibrated: its calibration, and by name why coded tensors got no moments; None if it had no calibration.
    """
    record = None
    if calibrated is not None:
        record = {**calibrated[0].record, "without_moments": dict(calibrated[1])}
    write_index(out, shards)
    sidecar_files = copy_sidecar_files(plan.source, out)
    config = {k: v for k, v in plan.source.config.items() if k != "transformers_weights"}  # names a file of the source
    config["quantization_config"] = quantization_config(plan)
    write_json(out / "config.json", config)
    manifest = _manifest(plan, fingerprint, records, (), record)
    write_file(out / "README.md", model_card(out, config, manifest).encode())
    names = [*sidecar_files, "README.md", "config.json"]
    names += calibrated[0].write_files(out) if calibrated is not None else ()
    names += [INDEX] if len(shards) > 1 else []
    others = tuple(file_record(out, n) for n in sorted(names))
    manifest = _manifest(plan, fingerprint, records, others, record)
    if (out / PRIVATE_SOURCE).is_dir():
        shutil.rmtree(out / PRIVATE_SOURCE)
    write_file(out / MANIFEST, manifest.dump())
    (out / JOURNAL).unlink()
    return manifest


def _manifest(
    plan: Plan,
    fingerprint: dict[str, Any],
    records: Sequence[ShardRecord],
    others: tuple[FileRecord, ...],
    calibration: dict[str, Any] | None,
) -> Manifest:
    source = plan.source
    return Manifest(
        fingerprint=fingerprint,
        tool={"name": "hlwq", "version": __version__},
        source={"id": _public_id(source.id, source.repo is not None), "revision": source.revision},
        rule=plan.rule,
        source_bytes=plan.source_bytes,
        files=(*(r.file for r in records), *others),
        coded=tuple(t for r in records for t in r.coded),
        kept=tuple(t for r in records for t in r.kept),
        dropped=tuple({"name": d.info.name, "reason": d.reason} for d in plan.dropped),
        calibration=calibration,
    )


def _public_id(model: str, is_repo: bool) -> str:
    """Return the Hub id, or the name of a folder without its path, which is private."""
    return model if is_repo else Path(model).resolve().name
