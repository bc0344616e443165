"""kill -9 before every single change that a command makes to its folder; see kill_commands.py."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "at_least"), [("overwrite", 45), ("replace-unfinished", 45), ("export", 30), ("card", 4)]
)
def test_command_killed_before_any_change_to_its_folder_is_finished_by_the_same_command(
    memory_folder: Path, name: str, at_least: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.run.kill_commands", name, memory_folder],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    *wrong, kills = done.stdout.splitlines() or ["kills 0"]
    assert wrong == [], done.stderr[-2000:]
    assert int(kills.removeprefix("kills ")) >= at_least, done.stderr[-2000:]
