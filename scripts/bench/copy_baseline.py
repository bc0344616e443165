"""How long copying takes: reads a checkpoint's weights and writes what a quantized one has, on some threads.

Where files lie on a disk they are read from it and written to it, not to the system's cache.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PIECE_BYTES = 32 * 2**20
"""Of a file, that a thread copies."""
CHUNK_BYTES = 2**20
"""Read and written at once: `cp` takes 256 KiB, and more than the processor's cache holds takes half as long again."""


@dataclass(frozen=True)
class CopyTime:
    """Seconds to read and write at once on so many threads, and when that was."""

    threads: int
    when: str
    seconds: float
    read: int
    written: int


def drop_page_cache(source: Path) -> None:
    """Let the system forget what it keeps in memory of a checkpoint's weights, where they are on a disk."""
    for path in source.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def time_copy(source: Path, out: Path, fraction: float, threads: int, when: str) -> CopyTime:
    """Read the weights of `source` and write the first `share` of each piece read, as `cp` would; removes `out`.

    Each thread writes a file of its own, since a file takes one writer at a time.
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
                assert read == length, "the kernel reads less than asked only where a file ends"
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
