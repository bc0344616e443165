"""kill -9 before every single change that a command makes to its folder; see kill_commands.py."""

import tempfile

import pytest

from tests.cli.run_command import hlwq_python

CODE = """
from pathlib import Path
from tests.checkpoint.run.kill_commands import main
main(Path({work!r}))
"""


@pytest.fixture(scope="module")
def campaigns() -> dict[str, list[str]]:
    """The number of kills and what went wrong, by command."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="hlwq-test-") as work:
        ran = hlwq_python(CODE.format(work=work), timeout=600)
    assert ran.code == 0, ran.err[-2000:]
    return {name: found for name, *found in (line.split("\t") for line in ran.out.splitlines())}


@pytest.mark.parametrize(
    ("name", "at_least"),
    [("quantize", 45), ("overwrite", 45), ("replace-unfinished", 45), ("export", 30), ("card", 4)],
)
def test_command_killed_before_any_change_to_its_folder_is_finished_by_the_same_command(
    campaigns: dict[str, list[str]], name: str, at_least: int
) -> None:
    kills, *wrong = campaigns[name]
    assert wrong == []
    assert int(kills) >= at_least
