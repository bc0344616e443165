"""Which worker runs what; needs pytest-xdist."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/cli/demo",)
"""Folders whose tests one worker runs, because they share a server and a measured checkpoint."""


class LongestFirst(LoadScopeScheduling):
    """Gives a worker one file at a time, or one folder of TOGETHER, in the order of collection."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in TOGETHER if nodeid.startswith(folder)), nodeid.split("::")[0])
