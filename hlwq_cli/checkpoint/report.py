"""What a coded checkpoint is made of, from its small files and headers."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass

from .manifest import KeptRecord, Manifest, TensorRecord
from .reader import open_coded


@dataclass(frozen=True)
class InspectReport:
    """A checkpoint at a glance, and tensor by tensor.

    Attributes:
        path: as given.
        source: id and revision of what it was made from.
        rule: how roles were found.
        bits_per_weight: of coded tensors, every stored bit counted.
        coded_bytes: of coded tensors.
        kept_bytes: of kept ones.
        source_bytes: of the source's weights.
        kept_share: kept bytes over source bytes.
        bits: weights by width.
        coded: a record each.
        kept: a record each.
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

    @property
    def matrices(self) -> dict[str, int]:
        """How many matrices of each role are coded; a stack counts its experts."""
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
        recoded: (name, what differs) of tensors that are coded or kept otherwise.
        changed: tensors coded alike whose bytes differ.
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
    """Describe an HLWQ folder or Hub repository; see `open_coded` for what it raises."""
    checkpoint = open_coded(path, revision)
    manifest, settings = checkpoint.manifest, checkpoint.settings
    bits: Counter[int] = Counter()
    for t in manifest.coded:
        bits[t.bits] += math.prod(t.shape)
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
        kept_share=manifest.kept_bytes / manifest.source_bytes,
        bits=dict(sorted(bits.items())),
        coded=manifest.coded,
        kept=manifest.kept,
    )


def diff(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> DiffReport:
    """Compare two HLWQ checkpoints tensor by tensor, by the hashes in their manifests."""
    a, b = _by_name(open_coded(first).manifest), _by_name(open_coded(second).manifest)
    both = [n for n in a if n in b]
    recoded = [(n, _how(a[n], b[n])) for n in both if _how(a[n], b[n])]
    alike = [n for n in both if not _how(a[n], b[n])]
    changed = [n for n in alike if a[n].sha256 != b[n].sha256]
    return DiffReport(
        only_first=tuple(n for n in a if n not in b),
        only_second=tuple(n for n in b if n not in a),
        recoded=tuple(recoded),
        changed=tuple(changed),
        same=len(alike) - len(changed),
    )


def _by_name(manifest: Manifest) -> dict[str, TensorRecord | KeptRecord]:
    """Coded and kept tensors under one kind of name, so that a matrix coded here and kept there is one tensor."""
    records: dict[str, TensorRecord | KeptRecord] = {t.name: t for t in manifest.coded}
    return {**records, **{k.name.removesuffix(".weight"): k for k in manifest.kept}}


def _how(a: TensorRecord | KeptRecord, b: TensorRecord | KeptRecord) -> str:
    first, second = _coding(a), _coding(b)
    return f"{first} / {second}" if first != second else ""


def _coding(record: TensorRecord | KeptRecord) -> str:
    width = f"{record.bits} bits" if isinstance(record, TensorRecord) else record.dtype
    return f"{width} {list(record.shape)}"
