"""Write README.md, the model card, from the files in a checkpoint's folder, and its hash into the manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import CodedCheckpoint, Manifest, open_coded
from ..checkpoint.format import MANIFEST, file_record, model_card, write_file
from ..errors import NotFoundError
from .results import fidelity_section

CARD = "README.md"


@dataclass(frozen=True)
class CardResult:
    """The result of `remake_card`.

    Attributes:
        path: path of README.md.
        changed: whether the card differs from the previous one.
        measured: whether the card shows figures of `hlwq bench`.
        notes: remarks for the user.
    """

    path: Path
    changed: bool
    measured: bool
    notes: tuple[str, ...]


def open_folder(path: str | os.PathLike[str]) -> CodedCheckpoint:
    """Open a finished checkpoint in a local folder.

    Raises:
        NotFoundError: there is no such folder, or its run is not finished.
        HlwqError: other errors of `open_coded`.
    """
    if not Path(path).is_dir():
        raise NotFoundError(f"There is no folder {path}.", "Give the output folder of `hlwq quantize`.")
    return open_coded(path)


def remake_card(path: str | os.PathLike[str], repo: str | None = None) -> CardResult:
    """Write a checkpoint's card again. The owner's text below the card's last line stays.

    Args:
        path: folder of the checkpoint.
        repo: Hub id to load from, as the card states it.
    """
    checkpoint = open_folder(path)
    text, notes = render_card(checkpoint, repo)
    card = checkpoint.folder / CARD
    changed = not card.is_file() or card.read_bytes() != text.encode()
    write_card(checkpoint.folder, checkpoint.manifest, text)
    return CardResult(card, changed, "\n## Fidelity\n" in text, notes)


def render_card(
    checkpoint: CodedCheckpoint, repo: str | None, inherited: Mapping[str, Any] = {}
) -> tuple[str, tuple[str, ...]]:
    """Return the text of a checkpoint's card, and remarks for the user. Nothing is written."""
    fidelity, notes = fidelity_section(checkpoint.folder, checkpoint.manifest)
    text = model_card(
        checkpoint.folder, checkpoint.config, checkpoint.manifest, repo=repo, inherited=inherited, fidelity=fidelity
    )
    found = [notes] if notes else []
    if "\nlicense:" not in text.partition("\n---\n")[0]:
        found.append("The card states no licence; add `license: ...` to the head of README.md and run `hlwq card`.")
    return text, tuple(found)


def write_card(folder: Path, manifest: Manifest, text: str) -> None:
    """Write README.md, and the manifest with the hash of README.md."""
    write_file(folder / CARD, text.encode())
    write_file(folder / MANIFEST, manifest.with_files([file_record(folder, CARD)]).dump())
