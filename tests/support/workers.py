"""What the workers of one test session share, and the order of their tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

LONG = (
    "tests/cli/demo", "tests/cli/bench", "tests/cli", "tests/runtime", "tests/test_wheel.py", "tests/checkpoint/run",
    "tests/scripts", "tests/measure", "tests/kernels", "tests/test_sample.py",
)  # fmt: skip
"""What takes long, the longest first. It is begun first, so that no worker has to wait for another at the end."""


def rank(nodeid: str) -> int:
    """Return the place of a test in the order in which tests are begun."""
    return next((i for i, start in enumerate(LONG) if nodeid.startswith(start)), len(LONG))


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
            # A folder is complete when it has its name.
            with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
                make(Path(unfinished) / folder.name)
                (Path(unfinished) / folder.name).rename(folder)
    return folder
