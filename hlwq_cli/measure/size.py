"""Size and bits per weight of a checkpoint, from headers and small files only."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import open_coded
from ..checkpoint.format.manifest import MANIFEST
from ..checkpoint.io.hub_repo import HubRepo, is_repo_id
from ..samples import resolve_model


def weights_size(path: str) -> tuple[int, float | None]:
    """Return the bytes of a checkpoint's weights, and its bits per weight, or None if it is not coded.

    Args:
        path: a folder, a Hub id, or `sample`.

    Raises:
        NotFoundError: there is no such folder or repository.
        CorruptError: the checkpoint is coded and its files are inconsistent.
    """
    folder = Path(resolve_model(path))
    if folder.is_dir() and not (folder / MANIFEST).exists():
        return sum(p.stat().st_size for p in folder.glob("*.safetensors")), None
    if not folder.exists() and is_repo_id(path):
        repo = HubRepo.find(path, None)
        if MANIFEST not in repo.files:
            return repo.weights_bytes(), None
    manifest = open_coded(folder if folder.is_dir() else path).manifest
    return manifest.output_bytes, manifest.bits_per_weight
