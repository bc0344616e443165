"""The output folder: may we write there, and what besides weights goes into it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..codec import lloyd_max
from ..errors import ConflictError
from .jobs import CodedTensor, KeptTensor
from .manifest import JOURNAL, MANIFEST, Manifest, describe_differences, read_manifest
from .plan import Plan
from .shards import FORMAT_VERSION, disk_errors, write_file
from .source import Source


def prepare_folder(out: Path, fingerprint: dict[str, Any], overwrite: bool) -> Manifest | None:
    """Make sure that `out` can take the result.

    Returns:
        The manifest, where the folder holds this very result already and `overwrite` is not asked for.

    Raises:
        ConflictError: the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ConflictError(f"{out} is a file.", "Choose another output folder.")
    if (out / MANIFEST).exists():
        manifest = read_manifest(out)
        if not overwrite:
            different = describe_differences(fingerprint, manifest.fingerprint)
            if not different:
                return manifest
            raise ConflictError(
                f"{out} holds a checkpoint that differs in {different}.", "Choose another folder, or --overwrite."
            )
        _remove(out, [f.name for f in manifest.files] + [MANIFEST])
    elif (out / JOURNAL).exists():
        if overwrite:
            _remove(out, [p.name for p in out.glob("*.safetensors")] + [JOURNAL])
    elif out.exists() and any(out.iterdir()):
        raise ConflictError(f"{out} is not empty and not made by hlwq.", "Choose another folder; it is left as it is.")
    with disk_errors(out / MANIFEST):
        out.mkdir(parents=True, exist_ok=True)
        for stray in out.glob(".*.partial"):
            stray.unlink()
        if not os.access(out, os.W_OK):
            raise PermissionError(13, "not writable")
    return None


def _remove(out: Path, names: list[str]) -> None:
    """Remove files that hlwq wrote, and nothing else."""
    for name in names:
        path = out / name
        if path.resolve().is_relative_to(out.resolve()):
            path.unlink(missing_ok=True)


def copy_companions(source: Source, out: Path) -> None:
    """Bring every file along that is no weight; the model card and config.json are written by others."""
    for name in source.companions:
        if name not in ("README.md", "config.json"):
            write_file(out / name, source.path(name).read_bytes())
    if "README.md" in source.companions:
        write_file(out / "README.source.md", source.path("README.md").read_bytes())


def companion_names(source: Source) -> list[str]:
    """The files `copy_companions` writes."""
    names = [n for n in source.companions if n not in ("README.md", "config.json")]
    return names + (["README.source.md"] if "README.md" in source.companions else [])


def quantization_config(plan: Plan) -> dict[str, Any]:
    """What config.json says of the coding; see docs/format.md."""
    widths = Counter(c.scheme.bits for c in plan.coded for _ in range(c.matrices))
    bits = widths.most_common(1)[0][0] if widths else plan.recipe.scheme.bits
    scheme = plan.recipe.scheme
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
        "source": {"repo": plan.source.id if plan.source.repo else None, "revision": plan.source.revision},
        "tool": {"name": "hlwq", "version": __version__},
    }


def _kept_modules(plan: Plan) -> set[str]:
    """Modules that could be linear layers and are kept: named exactly, so that no loader's default list steps in."""

    def is_matrix(job: CodedTensor | KeptTensor) -> bool:
        return isinstance(job, KeptTensor) and len(job.info.shape) == 2 and job.info.name.endswith(".weight")

    kept = {j.info.name.removesuffix(".weight") for j in plan.kept if is_matrix(j) and j.role != "embedding"}
    return kept | {d.info.name.removesuffix(".weight") for d in plan.dropped}
