"""Run torch so that the same inputs give the same bits on the same device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CUBLAS_WORKSPACE = ":4096:8"
"""What torch asks for: eight buffers of 4 MiB, which products of cuBLAS share in one order."""


def fix_workspace() -> None:
    """Make products on a GPU repeatable. Call it before the first one."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)


def use_threads(count: int) -> None:
    """Let torch use so many threads for operations that this thread calls, as sums on a CPU depend on their number."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Ask torch for deterministic algorithms inside this context, and put its settings back after it.

    Operations that have none run all the same: no layer of transformers is refused for them.

    Args:
        threads: of the CPU; forward passes call `use_threads` with it, too.
    """
    earlier = torch.get_num_threads()
    use_threads(threads)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # it would fill every new tensor, which takes time
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
            yield
    finally:
        use_threads(earlier)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = fills
