"""A lock on a folder: one process at a time writes into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import ConflictError
from .local_files import read_errors

LOCK = ".hlwq.lock"
"""Name of the lock file, on file systems that cannot lock a folder itself."""


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder inside this context. It ends with the process, too, however that ends.

    The folder itself is locked, so no file is left behind. Where the file system locks only files that can be written,
    such as NFS, a file in the folder is locked, and stays there. Where it has no locks at all, nothing is locked.

    Args:
        folder: an existing folder.

    Raises:
        ConflictError: another process holds the lock.
        NotAllowedError: the folder cannot be opened.
    """
    descriptor = _lock(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def check_unlocked(folder: Path) -> None:
    """Raise ConflictError if another process holds the lock of a folder, which need not exist."""
    if os.path.isdir(folder):  # false for a name that is too long, where Path.is_dir raises
        with locked_folder(folder):
            pass


def _lock(folder: Path) -> int | None:
    """Return a descriptor that holds the lock; None where the file system has no locks."""
    from filelock import lock_descriptor

    for path, flags in ((folder, os.O_RDONLY), (folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)):
        with read_errors(path, path.name):
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        try:
            is_ours = lock_descriptor(descriptor, blocking=False)
        except OSError:  # this file system does not lock what was opened so
            os.close(descriptor)
            continue
        if is_ours:
            return descriptor
        os.close(descriptor)
        raise ConflictError(
            f"Another process of hlwq writes into {folder}.", "Wait until it has ended, or choose another folder."
        )
    return None
