"""Write files completely or not at all, and turn errors of the disk into errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import NotAllowedError, OutOfSpaceError

_COPY_BYTES = 2**20


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of a full or read-only disk into errors that say what to do.

    Args:
        path: the file that is written; messages name its folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutOfSpaceError(
                f"The disk of {path.parent} is full.", "Free space and run the same command again; it continues."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise NotAllowedError(f"{path.parent} cannot be written to.", "Choose another output folder.") from error
        raise


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that renames in it survive a power failure."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file of any size completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with source.open("rb") as origin, disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as f:
            shutil.copyfileobj(origin, f, _COPY_BYTES)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)


def write_json(path: Path, document: object) -> None:
    """Write a JSON file completely or not at all."""
    write_file(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
