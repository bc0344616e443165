"""Output shards: which tensors share a file, and a writer that fills one in any order and renames it when whole."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from blake3 import blake3

from ...errors import CorruptError, NotAllowedError, OutOfSpaceError
from ..io import INDEX, build_header
from ..plan import PlannedTensor, StoredTensor, stored_bytes

FORMAT_VERSION = 1
LAYOUT = 2
"""How tensors lie within a shard; no reader needs it, but a run is not continued by one that lays them otherwise."""
DEFAULT_SHARD_BYTES = 2_000_000_000
_METADATA = {"format": "pt", "format_version": str(FORMAT_VERSION)}
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_WIDEST = 8
_COPY_BYTES = 2**20


@dataclass(frozen=True)
class Shard:
    """One output file and what goes into it."""

    file: str
    planned: tuple[PlannedTensor, ...]

    @property
    def stored_tensors(self) -> list[StoredTensor]:
        """The stored tensors in the order of the file, which is that of the planned tensors.

        Tensors that could leave the next one unaligned come last, those of wider types first.
        """
        last = [t for planned in self.planned if not lies_in_order(planned) for t in planned.stored_tensors]
        in_order = [t for planned in self.planned if lies_in_order(planned) for t in planned.stored_tensors]
        return in_order + sorted(last, key=lambda t: -t[1].itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(planned.nbytes for planned in self.planned)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in host memory, which they share where it is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def lies_in_order(planned: PlannedTensor) -> bool:
    """Return whether all stored tensors of a planned one are multiples of the widest type, which keeps all aligned."""
    return all(stored_bytes(t) % _WIDEST == 0 for t in planned.stored_tensors)


def shard_header(tensors: list[StoredTensor]) -> bytes:
    """The first bytes of a shard that holds these tensors one after the other; there is but one way to write them."""
    return build_header(tensors, _METADATA)


def divide(planned_tensors: Iterable[PlannedTensor], max_bytes: int) -> tuple[Shard, ...]:
    """Spread planned tensors, in order, over files of at most `max_bytes`; a larger one has a file of its own."""
    groups: list[list[PlannedTensor]] = [[]]
    size = 0
    for planned in planned_tensors:
        n = planned.nbytes
        if groups[-1] and size + n > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(planned)
        size += n
    if len(groups) == 1:
        return (Shard("model.safetensors", tuple(groups[0])),)
    return tuple(
        Shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", tuple(group)) for i, group in enumerate(groups, 1)
    )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into errors that say what to do."""
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


class ShardWriter:
    """Fills one shard by position; several threads may write at once.

    The file has a temporary name until `finish`.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.path = folder / shard.file
        self.partial = folder / f".{shard.file}.partial"
        header = shard_header(shard.stored_tensors)
        self.byte_ranges: dict[str, tuple[int, int]] = {}
        at = len(header)
        for output in shard.stored_tensors:
            self.byte_ranges[output[0]] = (at, stored_bytes(output))
            at += stored_bytes(output)
        self.size = at
        with disk_errors(self.path):
            self._fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                os.ftruncate(self._fd, at)
                self._write(header, 0)
            except BaseException:
                self.abandon()
                raise

    def write(self, name: str, start: int, data: bytes | bytearray | memoryview) -> None:
        """Write part of a tensor's data, `start` bytes into it."""
        with disk_errors(self.path):
            self._write(data, self.byte_ranges[name][0] + start)

    def _write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            n = os.pwrite(self._fd, view, offset)
            view, offset = view[n:], offset + n

    def finish(self) -> None:
        """Sync, close and rename the file, which nobody may be writing or hashing any more."""
        with disk_errors(self.path):
            os.fsync(self._fd)
            self._close()
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)

    def hash_range(self, digest: blake3, start: int, length: int) -> None:
        """Add a range of the file, which has been written, to a hash.

        It is mapped and hashed by one call, in which other threads have Python's lock: reading and hashing piece by
        piece, each of many threads would ask for it all the time.
        """
        if not length:
            return
        with disk_errors(self.path), self._mapped(start, length) as pages, pages[-length:] as view:
            digest.update(view)

    def begin_writeback(self, start: int, length: int) -> None:
        """Let the system begin to bring a range to the disk, where it can; with much memory it would wait for `finish`.

        To be called when the range has been hashed, as the system may keep it no longer. Says nothing of errors, which
        `finish` meets.
        """
        if length and hasattr(os, "posix_fadvise"):  # a length of 0 is all that follows
            with suppress(OSError):
                os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_DONTNEED)

    @contextmanager
    def _mapped(self, start: int, length: int) -> Iterator[memoryview]:
        """A range of the file, and what lies before it in its page."""
        assert self._fd >= 0, "closed: a map of no file is zeros"
        first = start - start % mmap.ALLOCATIONGRANULARITY
        try:
            pages = mmap.mmap(self._fd, start + length - first, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=first)
        except ValueError:
            raise CorruptError(
                f"{self.partial} was cut short by another process.", "Run the same command again."
            ) from None
        with pages, memoryview(pages) as view:
            yield view

    def abandon(self) -> None:
        """Close and remove the unfinished file."""
        self._close()
        self.partial.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def sync_folder(folder: Path) -> None:
    """Make renames within a folder last through a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
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
    """Copy a file of any size whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with source.open("rb") as origin, disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as f:
            shutil.copyfileobj(origin, f, _COPY_BYTES)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Write the index that says which shard holds which tensor; a single shard needs none."""
    if len(shards) == 1:
        return
    weight_map = {name: shard.file for shard in shards for name, _, _ in shard.stored_tensors}
    index = {"metadata": {"total_size": sum(s.nbytes for s in shards)}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX, index)


def write_json(path: Path, document: object) -> None:
    """Write a JSON file whole or not at all."""
    write_file(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
