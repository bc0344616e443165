"""What the processes of one test session share, and which of them runs what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/cli/demo",)
"""Folders whose tests one worker runs, because they share a server and a measured checkpoint."""

LONG = (
    "tests/cli/demo", "tests/cli/bench", "tests/cli", "tests/runtime", "tests/test_wheel.py", "tests/checkpoint/run",
    "tests/scripts", "tests/measure", "tests/kernels", "tests/test_sample.py",
)  # fmt: skip
"""What takes long, the longest first. It is begun first, so that no worker has to wait for another at the end."""


def rank(nodeid: str) -> int:
    """Return the place of a test in the order in which tests are begun."""
    return next((i for i, start in enumerate(LONG) if nodeid.startswith(start)), len(LONG))


class LongestFirst(LoadScopeScheduling):
    """Gives a worker one file at a time, or one folder of TOGETHER, in the order of collection."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in TOGETHER if nodeid.startswith(folder)), nodeid.split("::")[0])


def shared_folder(factory: pytest.TempPathFactory, config: pytest.Config) -> Path:
    """Return a folder of this session, the same for all its workers."""
    folder = factory.getbasetemp()
    shared = (folder.parent if hasattr(config, "workerinput") else folder) / "shared"
    shared.mkdir(exist_ok=True)
    return shared


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return `folder`, which `make` makes in the first worker that asks for it; never to be changed."""
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            # The folder is complete when it has its name: a worker may be stopped while it writes.
            made = folder.with_name(f"making-{folder.name}") / folder.name
            made.parent.mkdir()
            make(made)
            made.rename(folder)
    return folder
