"""Files beside a checkpoint that its manifest does not list, and that a loader would read all the same.

Whoever can put a file next to a result could exchange its weights, its tokenizer or its template that way, although
every listed file still has its hash.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from ...errors import GateMissedError
from .manifest import MANIFEST, Manifest, read_manifest

_LOADED = tuple(
    re.compile(pattern)
    for pattern in (
        # weights and adapters, also of the modules of sentence-transformers
        r"(\d+_[^/]+/)?(pytorch_|tf_|flax_|adapter_)?model([-.][^/]*)?\.(safetensors|bin|h5|msgpack)(\.index\.json)?",
        r"(\d+_[^/]+/)?[^/]*\.index\.json",
        # settings of models, tokenizers, processors and modules, and templates
        r"(\d+_[^/]+/)?([^/]*[-_.])?(config|tokenizer|tokens|tokens_map|vocab|processor|template|modules|normalizer"
        r"|merges|bpe|sentencepiece|spiece|spm)([-_.][^/]*)?\.(json|jinja|model|tiktoken|py)",
        r"([^/]*[-_.])?(vocab|merges|dict)([-_.][^/]*)?\.txt|[^/]*\.(codes|spm|tiktoken)|[^/]*tokenizer[^/]*\.model",
        r"(additional_)?chat_templates/.*\.jinja|custom_generate/.*",
    )
)
"""Names that transformers, PEFT and sentence-transformers look for, whatever else is in the folder."""
_OURS = frozenset((MANIFEST,))


def unlisted_files(names: Iterable[str], listed: Collection[str]) -> tuple[str, ...]:
    """Return the files that a loader would read and that are not listed, sorted.

    Args:
        names: all files of a checkpoint, relative to its folder.
        listed: those in its manifest.
    """
    return tuple(sorted(name for name in set(names).difference(listed, _OURS) if _would_be_read(name)))


def _would_be_read(name: str) -> bool:
    return not name.startswith(".") and any(pattern.fullmatch(name) for pattern in _LOADED)


def check_listed(names: Iterable[str], manifest: Manifest, where: str) -> None:
    """Raise GateMissedError if a checkpoint has files that a loader would read and its manifest does not list.

    Args:
        names: all its files, relative to its folder.
        manifest: its manifest.
        where: its name in the message.
    """
    found = unlisted_files(names, [f.name for f in manifest.files])
    if found:
        raise GateMissedError(
            f"{where} holds files that its manifest does not list and that loaders would read: {', '.join(found)}.",
            "Remove them, or fetch the checkpoint again.",
        )


def check_folder_listed(folder: Path) -> None:
    """Do the same for a local folder, if it holds a manifest."""
    if (folder / MANIFEST).is_file():
        check_listed(files_below(folder), read_manifest(folder), str(folder))


def files_below(folder: Path) -> list[str]:
    """Return the names of everything below a folder that is not a folder itself, links included."""
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()]
