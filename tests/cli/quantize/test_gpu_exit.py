"""quantize on a GPU exits without Python's cleanup: its result is complete, and other commands run exit handlers.

No GPU is needed: a patched torch reports that CUDA is initialized, which decides.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.run_command import environment, start
from tests.support.builders import LLAMA, dense, save_tensors

BEFORE = """
import atexit, sys, torch
torch.cuda.is_initialized = lambda: {on_gpu}
atexit.register(lambda: print("the end", file=sys.stderr))
"""


def left(*args: str | Path, on_gpu: bool = True, stdout: int = subprocess.PIPE) -> tuple[int, str, bool]:
    """Return the exit code, stdout, and whether Python ran its exit handlers."""
    process = start(*args, before=BEFORE.format(on_gpu=on_gpu), stdout=stdout)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    return process.wait(), out, err.endswith("the end\n")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tensors(tmp_path_factory.mktemp("leave") / "model", dense(), LLAMA)


def test_quantize_on_a_gpu_exits_at_once_after_its_complete_result(source: Path, tmp_path: Path) -> None:
    usual = left("quantize", source, tmp_path / "a", "--device", "cpu", on_gpu=False)
    quick = left("quantize", source, tmp_path / "a", "--device", "cpu", "--overwrite")
    assert (quick, usual[0], usual[2]) == ((0, usual[1], False), 0, True)
    assert usual[1].endswith(" --verify\n")


def test_fast_exit_keeps_exit_codes(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "theirs.txt").write_text("x")
    assert left("quantize", source, tmp_path / "full") == (5, "", False)
    assert left("quantize", source, "--bits", "five") == (2, "", False)


def test_closed_stdout_does_not_change_the_exit_code(source: Path, tmp_path: Path) -> None:
    """test_output has the same test without a GPU."""
    reading, writing = os.pipe()
    os.close(reading)
    code, _, usual_end = left("quantize", source, tmp_path / "out", stdout=writing)
    os.close(writing)
    assert (code, usual_end) == (0, False)


def test_other_commands_run_exit_handlers() -> None:
    code, said, usual_end = left("inspect", "/nowhere/at/all")
    assert (code, said, usual_end) == (3, "", True)


def test_imported_objects_are_frozen_for_the_garbage_collector(source: Path, tmp_path: Path) -> None:
    program = """
import gc, sys
from hlwq_cli.main import app
app(sys.argv[1:], standalone_mode=False)
assert "torch" in sys.modules and gc.isenabled() and gc.get_freeze_count() > 100_000, gc.get_freeze_count()
"""
    subprocess.run(
        [sys.executable, "-c", program, "quantize", source, tmp_path / "out", "-q"], env=environment(), check=True
    )
