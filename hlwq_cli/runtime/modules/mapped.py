"""Tensors that are mapped from a file: their memory can be given back, and is read again when it is used."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from pathlib import Path

import torch

MAPS = Path("/proc/self/maps")
"""Linux' list of the process's mappings; elsewhere nothing is given back."""


def release_pages(tensors: Iterable[torch.Tensor]) -> None:
    """Give back the memory of tensors that nobody has written to, as far as it is mapped from files.

    safetensors maps a shard's tensors privately. Their pages are read from the file again when they are next used. A
    page that a tensor shares with its neighbours stays.
    """
    pages = [range_ for tensor in tensors if (range_ := _whole_pages(tensor))]
    mapped = _file_mappings() if pages and MAPS.exists() else []
    for begin, end in pages:
        if any(start <= begin and end <= stop for start, stop in mapped):
            _madvise(begin, end - begin)


def _whole_pages(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Return the addresses of the pages that hold nothing but a tensor."""
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    return (begin, end) if begin < end else None


def _file_mappings() -> list[tuple[int, int]]:
    """Return the addresses of private mappings of files: the others lose their contents when they are given back."""
    found = []
    for line in MAPS.read_text().splitlines():
        addresses, permissions, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0" and permissions.endswith("p"):
            start, _, stop = addresses.partition("-")
            found.append((int(start, 16), int(stop, 16)))
    return found


def _madvise(address: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_int(mmap.MADV_DONTNEED))
