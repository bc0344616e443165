"""Ctrl-C ends a run with 130 and prints the command that continues it."""

import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.run_command import COMMAND, environment
from tests.support.builders import LLAMA, dense, save_tensors
from tests.support.files import tree

JOURNAL = ".hlwq_run.jsonl"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tensors(tmp_path_factory.mktemp("interrupt") / "a model", dense(20, width=1024), LLAMA)


def test_interrupted_run_prints_the_command_that_resumes_it(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "an out"
    arguments = ["quantize", str(source), str(out), "--threads", "1", "--max-shard-size", "1MB", "--exclude", r"\.3\."]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
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
    finished = subprocess.run([*COMMAND, *again], env=environment(), capture_output=True, text=True, check=True)
    assert "Continued after" in finished.stdout
    subprocess.run([*COMMAND, *again[:2], str(tmp_path / "b"), *again[3:]], env=environment(), check=True)
    assert tree(out) == tree(tmp_path / "b")
    assert not (out / JOURNAL).exists()
