"""Ctrl-C ends a run with 130 and prints the command that continues it."""

import shlex
import signal
import time
from pathlib import Path

import pytest

from tests.cli.run_command import hlwq, hlwq_process, start_anew
from tests.support.builders import LLAMA, dense, save_tensors
from tests.support.files import tree

JOURNAL = ".hlwq_run.jsonl"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tensors(tmp_path_factory.mktemp("interrupt") / "a model", dense(20, width=512), LLAMA)


def test_interrupted_run_prints_the_command_that_resumes_it(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "an out"
    arguments = [
        "quantize",
        str(source),
        str(out),
        "--threads",
        "1",
        "--max-shard-size",
        "250KB",
        "--exclude",
        r"\.3\.",
    ]
    process = start_anew(*arguments)
    while process.poll() is None and len([*out.glob("model-*.safetensors")]) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    interrupted, resume = stderr.splitlines()[-2:]
    assert interrupted == "Error: Interrupted."
    assert not [*out.glob(".*.partial")]

    program, *again = shlex.split(resume.removeprefix("Continue with: "))
    assert (program, again) == ("hlwq", arguments)
    finished = hlwq_process(*again)
    assert finished.code == 0, finished.err
    assert "Continued after" in finished.out
    assert hlwq(*again[:2], tmp_path / "b", *again[3:]).code == 0
    assert tree(out) == tree(tmp_path / "b")
    assert not (out / JOURNAL).exists()
