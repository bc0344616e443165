"""Tests of the plugin that import vLLM run in an environment of their own: scripts/test_vllm."""

import importlib.util
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm") is None:
    collect_ignore = [f"test_{name}.py" for name in ("linear", "moe", "engine", "server", "registration")]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of coded checkpoints, each with its exported twin."""
    from .models import make_models

    return make_models(tmp_path_factory.mktemp("models"))
