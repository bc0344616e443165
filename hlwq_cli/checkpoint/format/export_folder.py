"""The output folder of `export`: empty, or that of a killed export, which continues or starts anew."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import ConflictError, HlwqError
from ..io import LOCK, is_inside, read_text
from .files import disk_errors, remove_files, write_file

EXPORT_JOURNAL = ".hlwq_export.jsonl"


def check_export_folder(out: Path) -> None:
    """Check that an export may write into a folder; nothing is changed.

    Raises:
        ConflictError: it is no folder, or it holds files that no export left there.
    """
    with disk_errors(out / EXPORT_JOURNAL):
        if not os.path.lexists(out):
            return
        if out.is_dir() and ((out / EXPORT_JOURNAL).is_file() or all(_is_stray(p) for p in out.iterdir())):
            return
    raise ConflictError(f"{out} is not empty.", "Choose another folder; it is left as it is.")


def _is_stray(path: Path) -> bool:
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(".partial"))


class ExportJournal:
    """What an unfinished export writes, and which files of weights are finished.

    The first line of the file describes the export and names its files. Each other line is the name of a finished file.
    """

    def __init__(self, out: Path, settings: dict[str, Any], files: Sequence[str]) -> None:
        """Prepare a journal; nothing is written.

        Args:
            out: the output folder.
            settings: everything that decides the bytes of the weights.
            files: names of all files that the export writes.
        """
        self._out, self._path = out, out / EXPORT_JOURNAL
        self._first = {**settings, "files": list(files)}

    def open(self) -> set[str]:
        """Start the journal or continue the existing one, and return the names of the finished files.

        The files of an export with other settings are removed.
        """
        first, finished = self._read()
        if first != self._first:
            names = first.get("files", []) if isinstance(first, dict) else []
            remove_files(self._out, filter(is_inside, names if isinstance(names, list) else []))
            finished = []
        for path in [p for p in self._out.iterdir() if _is_stray(p) and p.name != LOCK]:
            path.unlink()
        self._write(finished)
        return {name for name in finished if (self._out / name).is_file()}

    def add(self, name: str) -> None:
        """Enter a finished file. It is on disk when this returns."""
        with disk_errors(self._path):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "w") as file:
                file.write(json.dumps(name) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def remove_files(self) -> None:
        """Remove all files of the export, and the journal."""
        remove_files(self._out, self._first["files"])
        self.close()

    def close(self) -> None:
        """Remove the journal: the export is finished."""
        with disk_errors(self._path):
            self._path.unlink()

    def _read(self) -> tuple[Any, list[str]]:
        """Return the first line and the finished files; nothing of what cannot be read."""
        try:
            lines = read_text(self._path).split("\n")[:-1]  # a line is whole when a newline ends it
            first, *finished = [json.loads(line) for line in lines]
        except (HlwqError, ValueError, RecursionError):
            return None, []
        return first, [name for name in finished if is_inside(name)]

    def _write(self, finished: Sequence[str]) -> None:
        write_file(self._path, "".join(json.dumps(line) + "\n" for line in (self._first, *finished)).encode())
