"""A forked `hlwq` cannot be told from one that is started anew."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.run_command import environment, hlwq_process, start, start_anew
from tests.support.builders import tiny_llama
from tests.support.files import tree


@pytest.mark.parametrize("arguments", [["--version"], ["quantize"], ["quantize", "--help"], ["inspect", "/nowhere"]])
def test_exit_code_and_output_are_those_of_a_new_process(arguments: list[str]) -> None:
    forked, anew = start(*arguments), start_anew(*arguments)
    assert forked.communicate(timeout=60) == anew.communicate(timeout=60)
    assert forked.wait() == anew.wait()


def test_folder_environment_and_bytes_are_those_asked_for(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "m")
    ran = hlwq_process("quantize", "m", "out", "-q", cwd=tmp_path)
    assert (ran.code, ran.out, ran.err) == (0, "out\n", "")
    assert start_anew("quantize", "m", "anew", "-q", cwd=tmp_path).communicate(timeout=60) == ("anew\n", "")
    assert tree(tmp_path / "out") == tree(tmp_path / "anew")
    ran = hlwq_process("inspect", "nowhere", cwd=tmp_path, env=environment(HLWQ_DEBUG="1"))
    assert (ran.code, "Traceback" in ran.err) == (3, True)
    assert "Traceback" not in hlwq_process("inspect", "nowhere", cwd=tmp_path).err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_ends_it_and_is_its_exit_code(number: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")  # a read of it waits for ever
    (tmp_path / "model.safetensors").write_bytes(b"")
    process = start("inspect", tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(number)
    assert process.wait(10) == process.poll() == -number
