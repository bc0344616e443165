"""Hooks, checks and development environment use the same versions of the formatters."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DEV = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
HOOKS = [
    hook
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]
]


def test_hooks_pin_the_versions_of_the_development_environment() -> None:
    pinned = {requirement for hook in HOOKS for requirement in hook["additional_dependencies"]}
    assert {requirement.partition("==")[0] for requirement in pinned} == {"ruff", "clang-format"}
    assert pinned <= set(DEV)


def test_scripts_check_runs_the_tool_of_every_hook() -> None:
    check = (ROOT / "scripts" / "check").read_text()
    for hook in HOOKS:
        tool = hook["entry"].split()[0]
        assert re.search(rf"\.venv/bin/{tool}\b", check), f"scripts/check does not run {tool}"
