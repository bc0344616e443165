"""kill -9 at random moments, then the same command: the result is that of an undisturbed run, to the byte."""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.cli.run_command import Process, assert_refused, hlwq, hlwq_process, start, start_anew
from tests.support.builders import LLAMA, add_sidecar_files, save_tensors
from tests.support.files import tree

JOURNAL = ".hlwq_run.jsonl"
OPTIONS = ["--threads", "1", "--max-shard-size", "250KB", "-q"]
STARTS = [start_anew] + [start] * 19
"""How each run that is killed is started: one as a user starts it, the others without its seconds of imports."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that takes some tenths of a second to code, in dozens of shards."""
    generator = torch.Generator().manual_seed(7)
    tensors = {
        f"model.layers.{i}.self_attn.q_proj.weight": torch.randn(512, 512, generator=generator).bfloat16()
        for i in range(40)
    }
    folder = save_tensors(tmp_path_factory.mktemp("kill") / "model", tensors, LLAMA)
    add_sidecar_files(folder)
    return folder


def stamp(out: Path) -> int:
    """Return when the journal of a run in `out` was last changed, in nanoseconds; 0 where there is none."""
    path = out / JOURNAL
    return path.stat().st_mtime_ns if path.exists() else 0


class Runs:
    """The command, started, watched and killed."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def start(self, out: Path, how: Callable[..., Process] = start) -> Process:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return how("quantize", self.source, out, *OPTIONS, **quiet)

    def wait_for_work(self, process: Process, out: Path) -> None:
        """Return when a run touches its journal, which is when imports and planning are over."""
        before = stamp(out)
        while process.poll() is None and stamp(out) == before:
            time.sleep(0.001)


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
    moments, runs, starts = random.Random(20), Runs(source), STARTS.copy()
    while starts:
        process = runs.start(out, starts[0])
        runs.wait_for_work(process, out)
        time.sleep(moments.uniform(0, seconds * 0.35))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            starts.pop(0)
        else:
            assert process.returncode == 0
            assert tree(out) == wanted
            shutil.rmtree(out)
    ran = hlwq_process("quantize", source, out, *OPTIONS)
    assert (ran.code, ran.out) == (0, f"{out}\n")
    assert tree(out) == wanted
    assert not [n for n in wanted if "partial" in n or n == JOURNAL]


def test_unfinished_folder_is_refused_by_readers_and_by_other_arguments(source: Path, out: Path) -> None:
    runs = Runs(source)
    process = runs.start(out)
    runs.wait_for_work(process, out)
    while len([*out.glob("model-*.safetensors")]) < 2:
        time.sleep(0.001)
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
