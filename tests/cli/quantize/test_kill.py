"""kill -9 at random moments, then the same command: the result is that of an undisturbed run, to the byte."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cli.quantize.random_kills import JOURNAL, stamp
from tests.cli.run_command import COMMAND, assert_refused, environment, hlwq, hlwq_process
from tests.support.builders import LLAMA, add_sidecar_files, save_tensors
from tests.support.files import tree

KILLS = 3
FORKED_KILLS = 17
"""By fork (see random_kills.py): the same command and signal, without three seconds of imports for each."""
OPTIONS = ["--threads", "1", "--max-shard-size", "1MB", "-q"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that takes a second or two to code, in dozens of shards."""
    generator = torch.Generator().manual_seed(7)
    tensors = {
        f"model.layers.{i}.self_attn.q_proj.weight": torch.randn(1024, 1024, generator=generator).bfloat16()
        for i in range(40)
    }
    folder = save_tensors(tmp_path_factory.mktemp("kill") / "model", tensors, LLAMA)
    add_sidecar_files(folder)
    return folder


class Runs:
    """The command, started, watched and killed."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        command = [*COMMAND, "quantize", str(self.source), str(out), *OPTIONS]
        return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait_for_work(self, process: subprocess.Popen[bytes], out: Path) -> None:
        """Return when a run touches its journal, which is when imports and planning are over."""
        before = stamp(out)
        while process.poll() is None and stamp(out) == before:
            time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The result of a run that is not killed, and the seconds that it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    runs = Runs(source)
    process = runs.start(out)
    runs.wait_for_work(process, out)
    started = time.monotonic()
    assert process.wait(60) == 0
    return out, time.monotonic() - started


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "out"
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_runs_killed_at_random_moments_resume_to_the_same_bytes(
    source: Path, undisturbed: tuple[Path, float], out: Path
) -> None:
    wanted, seconds = tree(undisturbed[0]), undisturbed[1]
    assert len([n for n in wanted if n.endswith(".safetensors")]) == 40
    moments, runs, kills, finished = random.Random(20), Runs(source), 0, 0
    while kills < KILLS:
        process = runs.start(out)
        runs.wait_for_work(process, out)
        time.sleep(moments.uniform(0, seconds * 0.35))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            kills += 1
        else:
            finished += 1
            assert tree(out) == wanted
            shutil.rmtree(out)
    ran = hlwq_process("quantize", source, out, *OPTIONS)
    assert (ran.code, ran.out) == (0, f"{out}\n")
    assert tree(out) == wanted
    assert not [n for n in wanted if "partial" in n or n == JOURNAL]


def test_forked_runs_killed_at_random_moments_resume_to_the_same_bytes(
    source: Path, undisturbed: tuple[Path, float], out: Path
) -> None:
    wanted, seconds = undisturbed
    command = ["quantize", source, out, *OPTIONS]
    settings = [str(FORKED_KILLS), str(seconds * 0.35), wanted, out]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.quantize.random_kills", *settings, *command],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.splitlines() == [f"kills {FORKED_KILLS}"], done.stderr[-2000:]
    ran = hlwq_process(*command)
    assert (ran.code, ran.out) == (0, f"{out}\n")
    assert tree(out) == tree(wanted)


def test_unfinished_folder_is_refused_by_readers_and_by_other_arguments(source: Path, out: Path) -> None:
    runs = Runs(source)
    process = runs.start(out)
    runs.wait_for_work(process, out)
    time.sleep(0.3)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = whole_files(out)
    for ran in (hlwq("inspect", out), hlwq("export", out, out.parent / "plain")):
        assert_refused(ran, 3, "holds an unfinished run.", "Run the same quantize command again to finish it.")
    ran = hlwq("quantize", source, out, *OPTIONS, "--bits", "4")
    assert_refused(ran, 5, "recipe.bits (now 4, then 5)", "--overwrite")
    assert whole_files(out) == before


def whole_files(out: Path) -> dict[str, str]:
    return {name: sha for name, sha in tree(out).items() if not name.endswith(".partial")}
