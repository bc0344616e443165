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
from .files import disk_errors, sync_folder
from .shards import Shard, shard_header


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in host memory, which they share where it is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


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
