"""How much memory a process holds now."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch


def memory_held(device: torch.device) -> int:
    """Bytes of a GPU that tensors occupy, or of host memory that the whole process does where the model is there."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):  # no Linux: the most it ever held
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
