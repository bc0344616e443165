"""kill -9 before every single change a run makes to its folder; see kill_points.py."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_run_killed_before_any_change_to_its_folder_is_finished_by_the_same_command(
    family: Callable[[str], Path], coded: Callable[[str], Path], memory_folder: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.run.kill_points", family("qwen3"), coded("qwen3"), memory_folder],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    *wrong, kills = done.stdout.splitlines()
    assert int(kills.removeprefix("kills ")) > 40, done.stderr[-2000:]
    assert wrong == []
