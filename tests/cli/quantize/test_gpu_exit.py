"""quantize on a GPU leaves without taking Python apart: its result is whole, and what others leave to the end is done.

No GPU is needed: torch is told that one was started, which is all that decides.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.run_command import environment
from tests.support.builders import LLAMA, dense, save_tensors

PROGRAM = """
import atexit, sys, torch
torch.cuda.is_initialized = lambda: {on_gpu}
atexit.register(lambda: print("the end", file=sys.stderr))
sys.argv[0] = "hlwq"
from hlwq_cli.main import main
main()
"""


def left(*args: str | Path, on_gpu: bool = True, stdout: int = subprocess.PIPE) -> tuple[int, str, bool]:
    """The exit code, what was said on stdout, and whether Python ended its usual way."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(on_gpu=on_gpu), *map(str, args)],
        env=environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stdout, done.stderr.endswith("the end\n")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tensors(tmp_path_factory.mktemp("leave") / "model", dense(), LLAMA)


def test_quantize_on_a_gpu_leaves_at_once_with_its_whole_result_said(source: Path, tmp_path: Path) -> None:
    usual = left("quantize", source, tmp_path / "a", "--device", "cpu", on_gpu=False)
    quick = left("quantize", source, tmp_path / "a", "--device", "cpu", "--overwrite")
    assert (quick, usual[0], usual[2]) == ((0, usual[1], False), 0, True)
    assert usual[1].endswith(" --verify\n")


def test_exit_codes_are_the_usual_ones(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "theirs.txt").write_text("x")
    assert left("quantize", source, tmp_path / "full") == (5, "", False)
    assert left("quantize", source, "--bits", "five") == (2, "", False)


def test_a_reader_who_stopped_changes_nothing(source: Path, tmp_path: Path) -> None:
    """Without a GPU neither: see test_output."""
    reading, writing = os.pipe()
    os.close(reading)
    code, _, usual_end = left("quantize", source, tmp_path / "out", stdout=writing)
    os.close(writing)
    assert (code, usual_end) == (0, False)


def test_other_commands_do_what_was_left_to_the_end() -> None:
    code, said, usual_end = left("inspect", "/nowhere/at/all")
    assert (code, said, usual_end) == (3, "", True)


def test_what_was_imported_is_not_looked_through_for_garbage_again(source: Path, tmp_path: Path) -> None:
    program = """
import gc, sys
from hlwq_cli.main import app
app(sys.argv[1:], standalone_mode=False)
assert "torch" in sys.modules and gc.isenabled() and gc.get_freeze_count() > 100_000, gc.get_freeze_count()
"""
    subprocess.run(
        [sys.executable, "-c", program, "quantize", source, tmp_path / "out", "-q"], env=environment(), check=True
    )
