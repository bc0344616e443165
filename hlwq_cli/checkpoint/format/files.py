"""Write files completely or not at all, and turn errors of the disk into errors that say what to do.

Every file that hlwq writes is created here. It gets a temporary name in its own folder first. That name is created
anew and no link is followed, so a file that somebody planted under it is never written through.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

from ...errors import CorruptError, NotAllowedError, OutOfSpaceError
from ..io import open_regular

_COPY_BYTES = 2**20
_MAX_NAME_BYTES = 255
_NOT_WRITABLE = frozenset(
    (
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR,
        errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP,
    )
)  # fmt: skip


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
        if error.errno in _NOT_WRITABLE:
            raise NotAllowedError(f"{path.parent} cannot be written to.", "Choose another output folder.") from error
        raise


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that renames in it survive a power failure."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def partial_path(path: Path) -> Path:
    """Return the temporary name of a file: in its folder, hidden, and ending in .partial."""
    name = f".{path.name}.partial"
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.partial"
    return path.with_name(name)


def create_file(path: Path, mode: int = 0o666) -> int:
    """Create a file and return its descriptor, for reading and writing.

    What has the name already is removed, not written to: a link stays without effect, whatever it leads to.

    Raises:
        OSError: the file cannot be created, for example as a folder has its name; see `disk_errors`.
    """
    with suppress(FileNotFoundError):
        path.unlink()
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


@contextmanager
def new_file(path: Path) -> Iterator[BufferedRandom]:
    """Yield a file to fill; when the context ends without an error, it is synced and gets the name `path`.

    A link of that name is replaced, not followed.

    Raises:
        OutOfSpaceError: the disk is full.
        NotAllowedError: the folder is not writable.
    """
    partial = partial_path(path)
    with disk_errors(path):
        if os.path.lexists(path) and not (path.is_symlink() or path.is_file()):
            raise FileExistsError(errno.EEXIST, "a folder or a device")
        file = os.fdopen(create_file(partial), "w+b")
    try:
        with disk_errors(path):
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_file(path: Path, data: bytes) -> None:
    """Write a small file completely or not at all."""
    with new_file(path) as file:
        file.write(data)


def copy_file(source: Path, folder: Path, name: str, sha256: str | None = None) -> None:
    """Copy a file of any size completely or not at all.

    Args:
        source: a regular file.
        folder: the folder to copy into.
        name: of the copy, relative to `folder`; its sub-folders are created.
        sha256: of the content that is expected; None if it is not known.

    Raises:
        CorruptError: the content is another one.
        NotAllowedError: a sub-folder is a link, which could lead out of `folder`.
    """
    path = folder / name
    with os.fdopen(open_regular(source, name), "rb") as origin:
        with disk_errors(path):
            _make_folders(folder, name)
        with new_file(path) as file:
            shutil.copyfileobj(origin, file, _COPY_BYTES)
            if sha256 is not None and _sha256(file) != sha256:
                raise CorruptError(
                    f"{name} in {source.parent} does not match the manifest.", "Fetch the checkpoint again."
                )


def _sha256(file: BufferedRandom) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _make_folders(folder: Path, name: str) -> None:
    """Create the sub-folders of a file, and refuse one that is a link."""
    for part in reversed(Path(name).parents[:-1]):
        if (folder / part).is_symlink():
            raise NotAllowedError(f"{folder / part} is a link, and hlwq writes through none.", "Remove it.")
        (folder / part).mkdir(parents=True, exist_ok=True)


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files, and the sub-folders that are empty then; nothing outside `folder`.

    Args:
        folder: the folder.
        names: of the files, relative to it; those that are not there are passed over.
    """
    inside = os.path.realpath(folder)
    with disk_errors(folder / "files"):
        for name in names:
            path = folder / name
            if not Path(os.path.realpath(path.parent)).is_relative_to(inside):
                continue
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
            for parent in Path(name).parents[:-1]:
                with suppress(OSError):  # it holds other files
                    (folder / parent).rmdir()


def json_bytes(document: object, indent: int) -> bytes:
    """Return a JSON file's content, in UTF-8; text that UTF-8 cannot hold, such as a name in Latin-1, is escaped."""
    try:
        return (json.dumps(document, indent=indent, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(document, indent=indent) + "\n").encode()


def write_json(path: Path, document: object) -> None:
    """Write a JSON file completely or not at all."""
    write_file(path, json_bytes(document, indent=2))
