"""Write a shard: fill its file in any order, hash ranges of it, and rename it when it is complete."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from blake3 import blake3

from ...errors import CorruptError
from ..plan import stored_bytes
from .files import create_file, disk_errors, partial_path, sync_folder
from .shards import Shard, shard_header


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor in host memory, without a copy if it is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


class ShardWriter:
    """Writes one shard in any order; several threads may write at once. The file has a temporary name until `finish`.

    Args:
        folder: the output folder.
        shard: the layout of the file.

    Attributes:
        path: final path of the file.
        partial: its path until `finish`.
        byte_ranges: (first byte, length) of each stored tensor in the file, by name.
        size: size of the file in bytes.

    Raises:
        OutOfSpaceError: the disk is full.
        NotAllowedError: the folder is not writable.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.path = folder / shard.file
        self.partial = partial_path(self.path)
        header = shard_header(shard.stored_tensors)
        self.byte_ranges: dict[str, tuple[int, int]] = {}
        at = len(header)
        for output in shard.stored_tensors:
            self.byte_ranges[output[0]] = (at, stored_bytes(output))
            at += stored_bytes(output)
        self.size = at
        with disk_errors(self.path):
            self._fd = create_file(self.partial, 0o644)
            try:
                os.ftruncate(self._fd, at)
                self._write(header, 0)
            except BaseException:
                self.abandon()
                raise

    def write(self, name: str, start: int, data: bytes | bytearray | memoryview) -> None:
        """Write part of a tensor's data, from its byte `start`."""
        with disk_errors(self.path):
            self._write(data, self.byte_ranges[name][0] + start)

    def _write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            n = os.pwrite(self._fd, view, offset)
            view, offset = view[n:], offset + n

    def finish(self) -> None:
        """Sync, close and rename the file. No thread may still write or hash it."""
        with disk_errors(self.path):
            os.fsync(self._fd)
            self._close()
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)

    def hash_range(self, digest: blake3, start: int, length: int) -> None:
        """Add a range of the file, which must be written, to a hash.

        The range is mapped and hashed by one call, which releases Python's global lock. If many threads read and hashed
        piece by piece, they would contend for that lock.
        """
        if not length:
            return
        with disk_errors(self.path), self._mapped(start, length) as pages, pages[-length:] as view:
            digest.update(view)

    def begin_writeback(self, start: int, length: int) -> None:
        """Start to write a range back to the disk, if the system supports it. Otherwise that may wait for `finish`.

        Call it after the range has been hashed, since the system may drop it from memory. Errors are ignored: `finish`
        meets them again.
        """
        if length and hasattr(os, "posix_fadvise"):  # a length of 0 is all that follows
            with suppress(OSError):
                os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_DONTNEED)

    @contextmanager
    def _mapped(self, start: int, length: int) -> Iterator[memoryview]:
        """Yield a mapping of a range of the file. It begins at the page of the first byte."""
        assert self._fd >= 0, "closed: a mapping of no file would be zeros"
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
