"""How much memory a process uses, and how much is free."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch


def memory_held(device: torch.device) -> int:
    """Return bytes of tensors on a GPU; for the CPU, bytes of host memory that the whole process uses."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):  # not Linux: the peak so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def host_memory_free() -> int:
    """Return free bytes of host memory, without swapping: of the machine, or of the process's control group."""
    free = _listed("/proc/meminfo", "MemAvailable:") * 1024 or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such group, or no limit
        return free
    return min(free, limit - used + _listed(f"{group}/memory.stat", "inactive_file"))


def _listed(path: str, name: str) -> int:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
