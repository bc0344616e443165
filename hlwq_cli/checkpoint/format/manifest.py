"""hlwq_manifest.json: the contents of a finished checkpoint, and the settings that it was made with."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...errors import CorruptError, NotFoundError
from ..io import read_text
from ..plan import Plan
from .files import json_bytes
from .manifest_entries import (
    CALIBRATION_FITS,
    RECIPE_FITS,
    FileRecord,
    KeptRecord,
    TensorRecord,
    check_fields,
    coded_record,
    dump_tensor,
    kept_record,
    read_file,
    read_kept,
    read_tensor,
    tensors_digest,
)
from .shards import FORMAT_VERSION, LAYOUT

MANIFEST = "hlwq_manifest.json"
JOURNAL = ".hlwq_run.jsonl"
RESULTS = "hlwq_bench.json"
CHART = "hlwq_bench.png"


@dataclass(frozen=True)
class Manifest:
    """The contents of hlwq_manifest.json.

    Attributes:
        fingerprint: everything that decides the bytes, see `fingerprint`.
        tool: name and version of the program that wrote the checkpoint.
        source: id and revision of the source.
        rule: how the roles were found, for people.
        source_bytes: size of the source's weights.
        files: all files but the manifest.
        coded: one record per coded tensor.
        kept: one record per kept tensor.
        dropped: name and reason of each tensor that was not written.
        format_version: version of the file format.
        calibration: of a calibrated checkpoint: what it was calibrated with, and which tensors were not and why.
    """

    fingerprint: dict[str, Any]
    tool: dict[str, str]
    source: dict[str, Any]
    rule: str
    source_bytes: int
    files: tuple[FileRecord, ...]
    coded: tuple[TensorRecord, ...]
    kept: tuple[KeptRecord, ...]
    dropped: tuple[dict[str, str], ...]
    format_version: int = FORMAT_VERSION
    calibration: dict[str, Any] | None = None

    @property
    def coded_bytes(self) -> int:
        """Size of all coded tensors."""
        return sum(t.bytes for t in self.coded)

    @property
    def kept_bytes(self) -> int:
        """Size of all kept tensors."""
        return sum(t.bytes for t in self.kept)

    @property
    def output_bytes(self) -> int:
        """Size of all tensors."""
        return self.coded_bytes + self.kept_bytes

    @property
    def weights_by_bits(self) -> dict[int, int]:
        """Number of coded weights of each width, the smallest width first."""
        counts: Counter[int] = Counter()
        for t in self.coded:
            counts[t.bits] += math.prod(t.shape)
        return dict(sorted(counts.items()))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per coded weight, scales included."""
        weights = sum(self.weights_by_bits.values())
        return 8 * self.coded_bytes / weights if weights else 0.0

    @property
    def digest(self) -> str:
        """sha256 of the fingerprint and all tensor hashes.

        It does not depend on the card or other sidecar files, nor on when files of the source were changed.
        """
        tensors = sorted([[t.name, t.blake3] for t in self.coded] + [[t.name, t.blake3] for t in self.kept])
        source = self.fingerprint.get("source")
        if isinstance(source, dict):
            source = {key: value for key, value in source.items() if key != "modified"}
        fingerprint = {**self.fingerprint, "source": source} if "source" in self.fingerprint else self.fingerprint
        return hashlib.sha256(json.dumps([fingerprint, tensors], sort_keys=True).encode()).hexdigest()

    @property
    def tensors_digest(self) -> str:
        """Return what the fingerprint states as `tensors`: a hash of what every tensor is and what it is made of."""
        return tensors_digest(self.coded, self.kept)

    def with_files(self, records: Iterable[FileRecord]) -> Manifest:
        """Return this manifest with files added or replaced."""
        files = {f.name: f for f in self.files} | {r.name: r for r in records}
        shards = [f for f in files.values() if f.is_shard]
        others = [f for f in files.values() if not f.is_shard]
        return replace(self, files=(*shards, *sorted(others, key=lambda f: f.name)))

    def dump(self) -> bytes:
        """Return the bytes of the file."""
        document = asdict(self) | {"coded": [dump_tensor(record) for record in self.coded]}
        if self.calibration is None:
            del document["calibration"]
        return json_bytes(document, indent=1)


def read_manifest(folder: Path, name: str = "") -> Manifest:
    """Read a finished checkpoint's manifest.

    Args:
        folder: folder of the checkpoint.
        name: name of the checkpoint in messages, by default its folder.

    Raises:
        NotFoundError: the folder has no manifest.
        CorruptError: the manifest is not valid, or of an unknown version.
    """
    path, name = folder / MANIFEST, name or str(folder)
    if not path.is_file():
        if (folder / JOURNAL).is_file():
            raise NotFoundError(f"{name} holds an unfinished run.", "Run the same quantize command again to finish it.")
        raise NotFoundError(
            f"{name} is not an HLWQ checkpoint: it has no {MANIFEST}.", "Make one with `hlwq quantize`."
        )
    try:
        document = json.loads(read_text(path), parse_constant=_no_number)
        version = document["format_version"]
        if version != FORMAT_VERSION:
            raise CorruptError(f"{path} has format version {version}, not {FORMAT_VERSION}.", "Update hlwq.")
        if _is_earlier(document):
            raise CorruptError(f"{path} was made before hlwq was first released.", "Make it again, with --overwrite.")
        document["files"] = tuple(read_file(f) for f in document["files"])
        document["coded"] = tuple(read_tensor(t) for t in document["coded"])
        document["kept"] = tuple(read_kept(t) for t in document["kept"])
        document["dropped"] = tuple(dict(d) for d in document["dropped"])
        check_fields("manifest", document)
        check_fields("recipe", document["fingerprint"].get("recipe", {}), RECIPE_FITS)
        check_fields("calibration", document.get("calibration", {}), CALIBRATION_FITS)
        manifest = Manifest(**document)
        for part, keys in ((manifest.source, ("id", "revision")), (manifest.tool, ("version",))):
            if missing := [key for key in keys if key not in part]:
                raise ValueError(f"it lacks {missing[0]!r}")
        if manifest.fingerprint.get("tensors", manifest.tensors_digest) != manifest.tensors_digest:
            raise ValueError("its tensors are not those of its fingerprint")
        return manifest
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise CorruptError(f"{path} is not a valid manifest: {what}.", "Fetch the checkpoint again.") from error


def _is_earlier(document: dict[str, Any]) -> bool:
    """Return whether tensors have the kind of hash that was used before the first release."""
    return any("sha256" in record for record in (*document["coded"], *document["kept"]))


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is not valid JSON")


def fingerprint(
    plan: Plan, max_shard_bytes: int, base_model: str | None, calibration: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return everything that decides a run's bytes. Two runs with the same fingerprint write the same files."""
    return {
        **({} if calibration is None else {"calibration": calibration}),
        "source": plan.source.fingerprint(),
        "recipe": plan.recipe.as_json(),
        "plan": plan.digest(),
        "max_shard_bytes": max_shard_bytes,
        "layout": LAYOUT,
        "tensors": tensors_digest(
            [coded_record(t, "", 0.0) for t in plan.coded], [kept_record(t, "") for t in plan.kept]
        ),
        "base_model": base_model,
        "tool": __version__,
    }


_LATER = ("modified", "tensors")
"""Keys that results made before they existed do not have: such a result is compared without them."""


def describe_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Return how two fingerprints differ, in a few words, or "" if they are equal."""
    found = _differences(ours, theirs)
    shown = [d for d in found if not d.startswith(("plan ", "recipe.role_bits"))] or found
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return ", ".join(shown[:3]) + more


def _only(ours: Any, theirs: Any) -> str:
    """Return both values, or who has one if the other has none and it would be a long one."""
    if isinstance(ours, dict) and theirs is None:
        return "only now"
    if isinstance(theirs, dict) and ours is None:
        return "only then"
    return f"now {ours}, then {theirs}"


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(set(ours) | set(theirs)):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b and not (key in _LATER and key not in theirs):
            found.append(f"{prefix}{key} ({_only(a, b)})")
    return found
