"""The kill campaign finds a fault that is planted; tests/checkpoint/run/test_kill_commands.py kills the commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLANTED = """
import sys
from pathlib import Path
from scripts.checks import kills

def write_twice(arguments):
    path = Path(arguments[0])
    was_there = path.exists()
    path.write_text("half")
    if not was_there:
        path.write_text("whole")
    raise SystemExit(0)

import hlwq_cli.main
hlwq_cli.main.app = write_twice
journey = kills.Journey("twice", lambda f: None, lambda f: [str(f / "x")], lambda f: {"x": (f / "x").read_text()})
scores = kills.campaign([journey], 2, 1, Path(sys.argv[1]))
print(scores["twice"].points, len(scores["twice"].findings))
"""


def test_command_that_does_not_finish_its_work_is_found(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLANTED, tmp_path], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "2 1", done.stdout + done.stderr
