"""Local files of a checkpoint: only regular files are opened, and no link leads out of the folder."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import CorruptError, HlwqError, NotAllowedError, NotFoundError

MAX_JSON_BYTES = 100_000_000
"""The largest config, index or manifest that is read."""


@contextmanager
def read_errors(path: Path, name: str) -> Iterator[None]:
    """Turn errors of the system about a file into errors that say what to do.

    Args:
        path: the file.
        name: its name in messages.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(
            f"There is no {name} in {path.parent}.", "Give the folder that holds a checkpoint's config and weights."
        ) from error
    except PermissionError as error:
        raise NotAllowedError(f"{name} in {path.parent} cannot be read.", "Change its permissions.") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CorruptError(f"{name} in {path.parent} is a link to itself.", "Remove it.") from error
        what = os.strerror(error.errno) if error.errno else type(error).__name__
        raise HlwqError(f"{name} in {path.parent} cannot be read: {what}.", "Check the disk.") from error


def open_regular(path: Path, name: str = "") -> int:
    """Open a regular file for reading and return its descriptor; links are followed.

    A pipe would block, and a device has no end: both are refused.

    Args:
        path: the file.
        name: its name in messages; by default the last part of `path`.

    Raises:
        NotFoundError: there is no such file.
        NotAllowedError: it may not be read.
        CorruptError: it is a folder, a pipe, a device, or a link to itself.
    """
    name = name or path.name
    with read_errors(path, name):
        # not blocking: opening a pipe would wait for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptError(f"{name} in {path.parent} is not a regular file.", "Put the file itself there.")
    return descriptor


def read_text(path: Path, name: str = "", max_bytes: int = MAX_JSON_BYTES) -> str:
    """Return the text of a regular file in UTF-8, of at most `max_bytes`.

    Raises:
        HlwqError: see `open_regular`.
        CorruptError: the file is larger.
        UnicodeDecodeError: it is not UTF-8.
    """
    name = name or path.name
    with os.fdopen(open_regular(path, name), "rb") as file, read_errors(path, name):
        if os.fstat(file.fileno()).st_size > max_bytes:
            raise CorruptError(f"{name} is larger than {max_bytes:,} bytes.", "Fetch it again.")
        return file.read(max_bytes + 1).decode()


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        HlwqError: see `open_regular`.
        CorruptError: it is not a JSON object in UTF-8, or larger than `MAX_JSON_BYTES`.
    """
    try:
        document = json.loads(read_text(path, name))
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{name} is not valid JSON: {error}.", "Fetch it again.") from error
    if not isinstance(document, dict):
        raise CorruptError(f"{name} is not a JSON object.", "Fetch it again.")
    return document


def list_files(root: Path) -> dict[str, os.stat_result]:
    """Return the regular files below a folder, sorted by name. Links to files are followed, links to folders not.

    Raises:
        NotAllowedError: the folder may not be read.
    """
    found: dict[str, os.stat_result] = {}
    with read_errors(root / ".", "file"):
        os.scandir(root).close()
    for folder, _, files in os.walk(root):
        for file in files:
            path = os.path.join(folder, file)
            try:
                status = os.stat(path)
            except OSError:  # a link that leads nowhere, or a file that has just been removed
                continue
            if stat.S_ISREG(status.st_mode):
                found[os.path.relpath(path, root)] = status
    return dict(sorted(found.items()))


def is_inside(file: Any) -> bool:
    """Whether a file's name is that of a file below its checkpoint's folder."""
    return isinstance(file, str) and "\0" not in file and not {"", ".", ".."} & set(file.split("/"))


def check_inside(root: Path, name: str) -> None:
    """Check that a file of a folder is no link that leads out of it.

    In the cache of the Hub all files are links into a folder `blobs`, next to the one that holds the snapshots; these
    are allowed.

    Args:
        root: the folder.
        name: of the file, relative to it.

    Raises:
        CorruptError: the file lies elsewhere.
    """
    folder = Path(os.path.realpath(root))  # Path.resolve raises RuntimeError for a link to itself
    target = Path(os.path.realpath(folder / name))
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    if not (target.is_relative_to(folder) or target.parent == blobs):
        raise CorruptError(
            f"{name} in {root} is a link to a file outside the folder.",
            "Do not trust this checkpoint, or put the file itself there.",
        )
