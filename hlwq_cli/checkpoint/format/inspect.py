"""Describe and compare coded checkpoints from their small files and headers."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from .manifest import Manifest
from .manifest_entries import KeptRecord, TensorRecord
from .reader import open_coded


@dataclass(frozen=True)
class InspectReport:
    """A summary of a checkpoint, and one record per tensor.

    Attributes:
        path: the path or Hub id, as given.
        source: id and revision of the source.
        rule: how the roles were found, for people.
        block_size: weights per block.
        scale: kind of the block scales, `log8` or `fp16`.
        bits_per_weight: stored bits per coded weight, scales included.
        coded_bytes: size of the coded tensors.
        kept_bytes: size of the kept tensors.
        source_bytes: size of the source's weights.
        kept_share: kept bytes divided by source bytes.
        bits: number of coded weights by width.
        coded: one record per coded tensor.
        kept: one record per kept tensor.
        calibration: what the checkpoint was calibrated with; None if it was not.
    """

    path: str
    source: dict[str, str | None]
    rule: str
    block_size: int
    scale: str
    bits_per_weight: float
    coded_bytes: int
    kept_bytes: int
    source_bytes: int
    kept_share: float
    bits: dict[int, int]
    coded: tuple[TensorRecord, ...]
    kept: tuple[KeptRecord, ...]
    calibration: dict[str, Any] | None = None

    @property
    def matrices(self) -> dict[str, int]:
        """Number of coded matrices by role; each expert of a stack counts."""
        counts: Counter[str] = Counter()
        for t in self.coded:
            counts[t.role] += t.matrices
        return dict(counts)


@dataclass(frozen=True)
class DiffReport:
    """How two checkpoints differ.

    Attributes:
        only_first: tensors that only the first has.
        only_second: tensors that only the second has.
        recoded: (name, what differs) of tensors that both have in different formats.
        changed: tensors of the same format whose bytes differ.
        same: number of tensors with the same bytes.
    """

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    recoded: tuple[tuple[str, str], ...]
    changed: tuple[str, ...]
    same: int

    @property
    def identical(self) -> bool:
        """Whether no tensor differs."""
        return not (self.only_first or self.only_second or self.recoded or self.changed)


def inspect(path: str | os.PathLike[str], revision: str | None = None) -> InspectReport:
    """Describe an HLWQ folder or Hub repository; see `open_coded` for the errors."""
    checkpoint = open_coded(path, revision)
    manifest, settings = checkpoint.manifest, checkpoint.settings
    return InspectReport(
        path=str(path),
        source=manifest.source,
        rule=manifest.rule,
        block_size=settings["block_size"],
        scale=settings["scale"],
        bits_per_weight=round(manifest.bits_per_weight, 4),
        coded_bytes=manifest.coded_bytes,
        kept_bytes=manifest.kept_bytes,
        source_bytes=manifest.source_bytes,
        kept_share=manifest.kept_bytes / manifest.source_bytes if manifest.source_bytes else 0.0,
        bits=manifest.weights_by_bits,
        coded=manifest.coded,
        kept=manifest.kept,
        calibration=manifest.calibration,
    )


def diff(first: str | os.PathLike[str], second: str | os.PathLike[str], revision: str | None = None) -> DiffReport:
    """Compare two HLWQ checkpoints tensor by tensor, by the hashes in their manifests.

    Args:
        first: an HLWQ folder or Hub id.
        second: another.
        revision: branch, tag or commit of `first`.
    """
    one, two = open_coded(first, revision), open_coded(second)
    a, b = _by_name(one.manifest), _by_name(two.manifest)
    codings = [f", blocks of {c.settings['block_size']}, {c.settings['scale']}" for c in (one, two)]
    more = ("", "") if codings[0] == codings[1] else (codings[0], codings[1])
    how = {n: _how(a[n], b[n], more) for n in a if n in b}
    recoded = [(n, text) for n, text in how.items() if text]
    alike = [n for n, text in how.items() if not text]
    changed = [n for n in alike if a[n].blake3 != b[n].blake3]
    return DiffReport(
        only_first=tuple(n for n in a if n not in b),
        only_second=tuple(n for n in b if n not in a),
        recoded=tuple(recoded),
        changed=tuple(changed),
        same=len(alike) - len(changed),
    )


def _by_name(manifest: Manifest) -> dict[str, TensorRecord | KeptRecord]:
    """Return coded and kept records by name. A matrix has the same name whether it is coded or kept."""
    records: dict[str, TensorRecord | KeptRecord] = {t.name: t for t in manifest.coded}
    return {**records, **{k.name.removesuffix(".weight"): k for k in manifest.kept}}


def _how(a: TensorRecord | KeptRecord, b: TensorRecord | KeptRecord, more: tuple[str, str]) -> str:
    first, second = _coding(a, more[0]), _coding(b, more[1])
    return f"{first} / {second}" if first != second else ""


def _coding(record: TensorRecord | KeptRecord, more: str) -> str:
    if isinstance(record, KeptRecord):
        return f"{record.dtype} {list(record.shape)}"
    return f"{record.bits} bits {list(record.shape)}{more}"
