"""hlwq_manifest.json: what a finished checkpoint is made of, and of what it was made."""

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
from ..plan.plan import Plan
from .manifest_entries import FileRecord, KeptRecord, TensorRecord, check_fields, read_file, read_kept, read_tensor
from .shards import FORMAT_VERSION, LAYOUT

MANIFEST = "hlwq_manifest.json"
JOURNAL = ".hlwq_run.jsonl"
RESULTS = "hlwq_bench.json"
CHART = "hlwq_bench.png"


@dataclass(frozen=True)
class Manifest:
    """hlwq_manifest.json: what the checkpoint is made of, and of what it was made."""

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

    @property
    def coded_bytes(self) -> int:
        """Stored bytes of coded tensors."""
        return sum(t.bytes for t in self.coded)

    @property
    def kept_bytes(self) -> int:
        """Bytes of kept tensors."""
        return sum(t.bytes for t in self.kept)

    @property
    def output_bytes(self) -> int:
        """Bytes of all tensors."""
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
        """All stored bits of coded tensors over their weights."""
        weights = sum(self.weights_by_bits.values())
        return 8 * self.coded_bytes / weights if weights else 0.0

    @property
    def digest(self) -> str:
        """sha256 of what was made of what: the fingerprint and every tensor's hash, whatever card lies beside them."""
        tensors = sorted([[t.name, t.blake3] for t in self.coded] + [[t.name, t.blake3] for t in self.kept])
        return hashlib.sha256(json.dumps([self.fingerprint, tensors], sort_keys=True).encode()).hexdigest()

    def with_files(self, records: Iterable[FileRecord]) -> Manifest:
        """This manifest with files added or replaced."""
        files = {f.name: f for f in self.files} | {r.name: r for r in records}
        shards = [f for f in files.values() if f.is_shard]
        others = [f for f in files.values() if not f.is_shard]
        return replace(self, files=(*shards, *sorted(others, key=lambda f: f.name)))

    def dump(self) -> bytes:
        """The file's bytes."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()


def read_manifest(folder: Path, name: str = "") -> Manifest:
    """Read a finished checkpoint's manifest.

    Args:
        folder: where it lies.
        name: what to call the checkpoint in messages, by default its folder.

    Raises:
        NotFoundError: the folder has none.
        CorruptError: it cannot be understood.
    """
    path, name = folder / MANIFEST, name or str(folder)
    if not path.is_file():
        if (folder / JOURNAL).is_file():
            raise NotFoundError(f"{name} holds an unfinished run.", "Run the same quantize command again to finish it.")
        raise NotFoundError(
            f"{name} is not an HLWQ checkpoint: it has no {MANIFEST}.", "Make one with `hlwq quantize`."
        )
    try:
        document = json.loads(path.read_text(), parse_constant=_no_number)
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
        return Manifest(**document)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(f"{path} cannot be understood: {error}.", "Fetch the checkpoint again.") from error


def _is_earlier(document: dict[str, Any]) -> bool:
    """Whether tensors have the hash of before the first release."""
    return any("sha256" in record for record in (*document["coded"], *document["kept"]))


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def fingerprint(plan: Plan, max_shard_bytes: int, base_model: str | None) -> dict[str, Any]:
    """What decides a run's bytes; two runs with the same fingerprint write the same files."""
    return {
        "source": plan.source.fingerprint(),
        "recipe": plan.recipe.as_json(),
        "plan": plan.digest(),
        "max_shard_bytes": max_shard_bytes,
        "layout": LAYOUT,
        "base_model": base_model,
        "tool": __version__,
    }


def describe_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """How two fingerprints differ, in a few words; empty where they do not."""
    found = _differences(ours, theirs)
    telling = [d for d in found if not d.startswith(("plan ", "recipe.role_bits"))] or found
    more = f" and {len(telling) - 3} more" if len(telling) > 3 else ""
    return ", ".join(telling[:3]) + more


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(set(ours) | set(theirs)):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} (now {a}, then {b})")
    return found
