"""Write README.md, the model card, from the files in a checkpoint's folder, and its hash into the manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import CodedCheckpoint, Manifest, open_coded
from ..checkpoint.format import MANIFEST, FileRecord, model_card, write_file
from ..checkpoint.io import locked_folder
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


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise NotFoundError if there is no such local folder."""
    if not os.path.isdir(path):
        raise NotFoundError(f"There is no folder {path}.", "Give the output folder of `hlwq quantize`.")


def remake_card(path: str | os.PathLike[str], repo: str | None = None) -> CardResult:
    """Write a checkpoint's card again. The owner's text below the card's last line stays.

    Args:
        path: folder of the checkpoint.
        repo: Hub id to load from, as the card states it.

    Raises:
        NotFoundError: there is no such folder, or its run is not finished.
        ConflictError: another process writes into the folder.
        HlwqError: other errors of `open_coded`.
    """
    check_folder(path)
    with locked_folder(Path(path)):
        checkpoint = open_coded(path)
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
    """Write the manifest with the hash of README.md, then README.md.

    In this order, because a push that was killed in between must not take an edited card for its own.
    """
    write_file(folder / MANIFEST, manifest.with_files([card_record(text)]).dump())
    write_file(folder / CARD, text.encode())


def card_record(text: str) -> FileRecord:
    """Return the size and hash of a card that need not be written yet."""
    data = text.encode()
    return FileRecord(CARD, len(data), hashlib.sha256(data).hexdigest())
