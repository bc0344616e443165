"""The output folder: check that it can take the result, and write its files other than weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..._version import __version__
from ...codec import lloyd_max
from ...errors import ConflictError, HlwqError
from ..format import (
    CHART,
    FORMAT_VERSION,
    JOURNAL,
    MANIFEST,
    RESULTS,
    SHARD,
    Manifest,
    copy_file,
    describe_differences,
    disk_errors,
    read_manifest,
    remove_files,
)
from ..io import INDEX, LOCK, Source, locked_folder
from ..plan import KeptTensor, Plan, PlannedTensor
from .journal import Journal, journal_differences, journal_files, replaced_files

_WRITTEN = (INDEX, "config.json", "README.md")
_WRITTEN_ANEW = ("config.json", MANIFEST, RESULTS, CHART)
"""Files of a source that are not copied: the run writes its own, and results measured on another checkpoint."""
PRIVATE_SOURCE = ".hlwq_source"
"""Folder within the output where `--delete-source` keeps fetched files until they have been read."""


def check_output_folder(out: Path, fingerprint: dict[str, Any], overwrite: bool) -> tuple[Manifest | None, list[str]]:
    """Find out whether `out` can take the result; nothing is changed.

    Returns:
        The manifest, where the folder holds this very result already and `overwrite` is not asked for; and the names
        of files of an earlier result to remove.

    Raises:
        ConflictError: the folder holds something else.
    """
    with disk_errors(out / MANIFEST):
        return _look(out, fingerprint, overwrite)


def _look(out: Path, fingerprint: dict[str, Any], overwrite: bool) -> tuple[Manifest | None, list[str]]:
    if os.path.lexists(out) and not out.is_dir():
        what = "a link that leads nowhere" if out.is_symlink() else "a file"
        raise ConflictError(f"{out} is {what}.", "Choose another output folder.")
    if (out / MANIFEST).exists():
        if overwrite:
            return None, [*_names(out), *journal_files(out), MANIFEST]
        manifest = read_manifest(out)
        different = describe_differences(fingerprint, manifest.fingerprint)
        if different:
            raise ConflictError(
                f"{out} holds a checkpoint that differs in {different}.", "Choose another folder, or --overwrite."
            )
        short = [f.name for f in manifest.files if not _has_size(out / f.name, f.size)]
        if short:
            raise ConflictError(
                f"{out} holds this checkpoint, but {short[0]} is missing or cut short.",
                "Make it again with --overwrite.",
            )
        (out / JOURNAL).unlink(missing_ok=True)
        return manifest, []
    if (out / JOURNAL).exists():
        if overwrite and journal_differences(out, fingerprint):
            return None, [*_usual_names(out), *journal_files(out)]
        return None, replaced_files(out)
    if out.exists() and any(not _is_stray(p) and p.name != LOCK for p in out.iterdir()):
        raise ConflictError(f"{out} is not empty and not made by hlwq.", "Choose another folder; it is left as it is.")
    return None, []


def _names(out: Path) -> list[str]:
    """Files of a result: those its manifest states, where that can be read."""
    try:
        return [f.name for f in read_manifest(out).files]
    except HlwqError:
        return _usual_names(out)


def _usual_names(out: Path) -> list[str]:
    """Files that every run writes."""
    weights = [p.name for p in out.iterdir() if SHARD.fullmatch(p.name)]
    return [*weights, *_WRITTEN, "README.source.md", RESULTS, CHART]


@contextmanager
def locked_output(out: Path) -> Iterator[None]:
    """Make the output folder, and hold its lock inside this context; see `locked_folder` for the errors.

    A folder that was made here is removed after an error if it is still empty.
    """
    is_new = not out.exists()
    with disk_errors(out / MANIFEST):
        out.mkdir(parents=True, exist_ok=True)
    with locked_folder(out):
        try:
            yield
        except BaseException:
            if is_new:
                with suppress(OSError):  # it holds finished shards
                    out.rmdir()
            raise


def begin(out: Path, journal: Journal, replaced: list[str]) -> None:
    """Remove an earlier result and the half-written files of a killed run, and open the journal.

    The journal names the files to remove before the first of them goes, and the manifest goes first. So the same
    command continues wherever it is killed, and nobody takes a part of the earlier result for the whole.

    Raises:
        ConflictError: an unfinished run of other arguments is in the folder.
    """
    with disk_errors(out / MANIFEST):
        if not os.access(out, os.W_OK):
            raise PermissionError(13, "not writable")
        if replaced:
            journal.begin_replacing(replaced)
            (out / MANIFEST).unlink(missing_ok=True)
            remove_files(out, replaced)
        for path in out.iterdir():
            if _is_stray(path) or (path.name == PRIVATE_SOURCE and path.is_symlink()):
                path.unlink()
    journal.open()


def _is_stray(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".partial")


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def sidecar_names(source: Source) -> dict[str, str]:
    """Return the names that a source's sidecar files get in the result, with their names in the source.

    config.json and the model card are written anew by others; the source's card comes along as README.source.md.
    """
    names = {n: n for n in source.sidecar_files if n not in _WRITTEN_ANEW}
    if "README.md" in names:
        names["README.source.md"] = names.pop("README.md")
    return names


def written_files(source: Source) -> list[str]:
    """Return the names of all files, other than shards and the manifest, that a run writes."""
    return [*sidecar_names(source), *_WRITTEN]


def copy_sidecar_files(source: Source, out: Path) -> list[str]:
    """Copy the source's sidecar files, and return the names written; see `sidecar_names`."""
    names = sidecar_names(source)
    for name, origin in names.items():
        copy_file(source.path(origin), out, name)
    return list(names)


def quantization_config(plan: Plan) -> dict[str, Any]:
    """What config.json says of the coding; see docs/format.md."""
    widths = Counter(c.scheme.bits for c in plan.coded for _ in range(c.matrices))
    bits = widths.most_common(1)[0][0] if widths else plan.recipe.scheme.bits
    scheme = plan.recipe.scheme
    exceptions = {"transposed": list(plan.transposed), "unused": list(plan.unused)}
    return {
        "quant_method": "hlwq",
        "format_version": FORMAT_VERSION,
        "bits": bits,
        "bpw": round(plan.bits_per_weight, 4),
        "block_size": scheme.block_size,
        "scale": scheme.scale,
        "rotation": "hadamard",
        "codebook": "lloyd-max",
        "codebooks": {
            str(b): [float(c) for c in np.array(lloyd_max(b), np.float32)] for b in sorted(widths or {bits: 0})
        },
        "tensors": {c.name: c.scheme.bits for c in plan.coded if c.scheme.bits != bits},
        "modules_to_not_convert": sorted(_kept_modules(plan)),
        **{key: names for key, names in exceptions.items() if names},
        "source": {"repo": plan.source.id if plan.source.repo else None, "revision": plan.source.revision},
        "tool": {"name": "hlwq", "version": __version__},
    }


def _kept_modules(plan: Plan) -> set[str]:
    """Modules that could be linear layers and are kept: named exactly, so that no loader's default list steps in."""

    def is_matrix(planned: PlannedTensor) -> bool:
        return (
            isinstance(planned, KeptTensor) and len(planned.info.shape) == 2 and planned.info.name.endswith(".weight")
        )

    kept = {j.info.name.removesuffix(".weight") for j in plan.kept if is_matrix(j) and j.role != "embedding"}
    experts = {j.info.name.rpartition(".")[0] for j in plan.kept if j.role == "expert" and len(j.info.shape) == 3}
    tied = {d.info.name.removesuffix(".weight") for d in plan.dropped} | ({"lm_head"} if plan.source.tied else set())
    reads_codes = any(j.role == "embedding" and not j.name.endswith("_per_layer") for j in plan.coded)
    return kept | experts | (set() if reads_codes else tied)
