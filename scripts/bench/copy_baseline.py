"""Measure how long copying takes: read a checkpoint's weights and write as much as its quantized form holds.

Used by quantize.py. Files on a disk are read from and written to that disk, not the page cache.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PIECE_BYTES = 32 * 2**20
"""The range of a file that one thread copies."""
CHUNK_BYTES = 2**20
"""Bytes per read and write. `cp` uses 256 KiB; a chunk larger than the CPU's cache takes half as long again."""


@dataclass(frozen=True)
class CopyTime:
    """One measured copy.

    Attributes:
        threads: number of threads.
        when: "before" or "after" the command.
        seconds: wall-clock time.
        read: bytes read.
        written: bytes written.
    """

    threads: int
    when: str
    seconds: float
    read: int
    written: int


def drop_page_cache(source: Path) -> None:
    """Evict a checkpoint's weights from the page cache, if they are on a disk."""
    for path in source.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def time_copy(source: Path, out: Path, fraction: float, threads: int, when: str) -> CopyTime:
    """Read the weights of `source`, write the first `fraction` of each chunk, as `cp` would, and time it.

    Each thread writes its own file, since a file takes one writer at a time. The written files are removed.
    """
    files = sorted(source.glob("*.safetensors"))
    sizes = [f.stat().st_size for f in files]
    readers = [os.open(f, os.O_RDONLY) for f in files]
    written = [out.with_name(f"{out.name}-{number}") for number in range(threads)]
    writers = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for path in written]
    pieces = [
        (r, start, min(start + PIECE_BYTES, n))
        for r, n in zip(readers, sizes, strict=True)
        for start in range(0, n, PIECE_BYTES)
    ]
    copied = [0] * threads

    def copy(number: int) -> None:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for reader, start, end in pieces[number::threads]:
            for offset in range(start, end, CHUNK_BYTES):
                length = min(CHUNK_BYTES, end - offset)
                read = os.preadv(reader, [buffer[:length]], offset)
                assert read == length, "the kernel returns fewer bytes than requested only at the end of a file"
                part = buffer[: int(length * fraction)]
                copied[number] += len(part)
                while part:
                    part = part[os.write(writers[number], part) :]
        os.fsync(writers[number])

    drop_page_cache(source)
    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(copy, range(threads)))
    seconds = time.perf_counter() - begun
    for descriptor in (*readers, *writers):
        os.close(descriptor)
    for path in written:
        path.unlink()
    return CopyTime(threads, when, seconds, sum(sizes), sum(copied))
