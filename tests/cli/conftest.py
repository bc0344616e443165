"""Fixtures: a user of the stand-in Hub, and a coded folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.push.push_command import TOKEN
from tests.support.hub_server import HubServer


@pytest.fixture
def account(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.login(TOKEN, "ann")
    return hub


@pytest.fixture
def folder(coded: Callable[[str], Path], copied: Callable[[Path], Path]) -> Path:
    return copied(coded("qwen3"))
