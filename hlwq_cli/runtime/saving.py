"""A loaded model, described in a line and saved again: a coded one with the manifest and card of the new folder."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint import CodedCheckpoint, open_coded
from ..checkpoint.format import (
    CHART,
    MANIFEST,
    RESULTS,
    SHARD,
    KeptRecord,
    Manifest,
    copy_file,
    disk_errors,
    file_record,
    model_card,
    tensor_hash,
    tensors_digest,
    write_file,
)
from ..checkpoint.io import INDEX, collect_tensors, read_header, read_json, read_weight_map
from ..errors import ConflictError, UnsupportedError
from .modules.format import CodedModule

_MADE_AGAIN = frozenset((MANIFEST, INDEX, RESULTS, CHART, "README.md"))


def describe(path: str | None, model: Any, supports_images: bool) -> str:
    """Return path, class, widths of codes, dtype and device of a loaded model in a line."""
    widths: set[int] = set()
    for module in model.modules():
        if isinstance(module, CodedModule):
            widths |= module.widths
    codes = f"codes of {', '.join(map(str, sorted(widths)))} bits" if widths else "no codes"
    dtype = str(model.dtype).removeprefix("torch.")
    inputs = "text and images" if supports_images else "text"
    return f"HLWQModel({path!r}, {type(model).__name__}, {codes}, {dtype} on {model.device}, {inputs})"


def save_model(model: Any, processor: Any, path: str | None, revision: str | None, folder: Path) -> None:
    """Save a model and its processor to a new folder: a coded one as a checkpoint, another as transformers does.

    Raises:
        HlwqError: see `save_checkpoint`; the same for all models if the folder is not empty.
    """
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConflictError(f"{folder} is not an empty folder.", "Choose another folder; it is left as it is.")
    if path is None or not any(isinstance(m, CodedModule) for m in model.modules()):
        with disk_errors(folder):
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
    else:
        save_checkpoint(model, processor, path, revision, folder)


def save_checkpoint(model: Any, processor: Any, path: str, revision: str | None, out: Path) -> Manifest:
    """Save a model that was loaded from a coded checkpoint as another one.

    Codes must be as they were loaded; other parameters may have new values, dtypes and shapes. The folder appears when
    it is complete.

    Args:
        model: the transformers model.
        processor: its processor or tokenizer.
        path: what it was loaded from, a folder or a Hub id.
        revision: of a Hub id.
        out: the folder to write. It must be absent or empty.

    Raises:
        NotFoundError: what it was loaded from is not there any more, or has no manifest.
        UnsupportedError: experts are offloaded, codes were changed, or tensors were added or removed.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not quantizer.is_serializable():
        raise UnsupportedError(
            "A model with offloaded experts cannot be saved.", "Copy the folder that it was loaded from."
        )
    original = open_coded(path, revision)
    with closing(original), disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=out.parent) as temporary:
            made = Path(temporary) / "checkpoint"
            model.save_pretrained(made)
            processor.save_pretrained(made)
            manifest = _finish(original, made)
            os.replace(made, out)
            return manifest


def _finish(original: CodedCheckpoint, folder: Path) -> Manifest:
    """Add other files of the original, the card, and the manifest."""
    for record in original.manifest.files:
        if not record.is_shard and record.name not in _MADE_AGAIN and not (folder / record.name).exists():
            copy_file(original.path(record.name), folder, record.name, record.sha256)
    saved = _opened(original, folder)
    try:
        kept = _kept_records(original, saved)
    finally:
        saved.close()
    manifest = replace(original.manifest, fingerprint=_fingerprint(original.manifest, kept), kept=kept, files=())
    write_file(folder / "README.md", model_card(folder, saved.config, manifest).encode())
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    manifest = manifest.with_files(file_record(folder, name) for name in names)
    write_file(folder / MANIFEST, manifest.dump())
    return manifest


def _opened(original: CodedCheckpoint, folder: Path) -> CodedCheckpoint:
    """Return the saved folder as a checkpoint, with the original's manifest for the time being."""
    shards = sorted(p.name for p in folder.iterdir() if SHARD.fullmatch(p.name))
    headers = {name: read_header(folder / name, name)[0] for name in shards}
    weight_map = read_weight_map(folder / INDEX) if (folder / INDEX).exists() else None
    config = read_json(folder / "config.json", "config.json")
    tensors = collect_tensors(headers, weight_map)
    return CodedCheckpoint(folder, config, original.manifest, tensors, original.codebooks)


def _kept_records(original: CodedCheckpoint, saved: CodedCheckpoint) -> tuple[KeptRecord, ...]:
    """Return the kept tensors as they were saved.

    Raises:
        UnsupportedError: the saved model has other tensors than the original, or other codes.
    """
    found, expected = set(saved.tensors), set(original.tensors)
    if found != expected:
        other = ", ".join(sorted(found ^ expected)[:3])
        raise UnsupportedError(
            f"The model has other tensors than the checkpoint it was loaded from ({other}).",
            "Save adapters by their own save_pretrained.",
        )
    for record in original.manifest.coded:
        if tensor_hash(saved, saved.stored(record)) != record.blake3:
            raise UnsupportedError(
                f"The codes of {record.name} were changed after loading.", "Quantize the changed model instead."
            )
    kept = []
    for before in original.manifest.kept:
        info = saved.tensors[before.name]
        digest = tensor_hash(saved, [info])
        kept.append(replace(before, dtype=info.dtype, shape=info.shape, bytes=info.nbytes, blake3=digest))
    return tuple(kept)


def _fingerprint(manifest: Manifest, kept: tuple[KeptRecord, ...]) -> dict[str, Any]:
    """Return the original's fingerprint, and a hash of the kept tensors that are not as they were, if there are any."""
    before = {record.name: record.blake3 for record in manifest.kept}
    changed = sorted([r.name, r.blake3] for r in kept if r.blake3 != before[r.name])
    if not changed:
        return manifest.fingerprint
    digest = hashlib.sha256(json.dumps(changed).encode()).hexdigest()
    return {**manifest.fingerprint, "tensors": tensors_digest(manifest.coded, kept), "changed": digest}
