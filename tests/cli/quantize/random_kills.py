"""Kill forked runs of `hlwq quantize` at random moments, resume each by the next one, and print the number of kills.

    python -m tests.cli.quantize.random_kills KILLS SECONDS REFERENCE OUT ARGUMENT...

One process imports and compiles everything once, then forks. A child gives the command ARGUMENT... and is killed at
most SECONDS after it first touches its journal. The next child gives the same command again. When a child finishes, its
folder OUT must equal the folder REFERENCE; it is then removed. Prints a line for each folder that differs.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from hlwq_cli.main import app
from tests.support.files import tree

JOURNAL = ".hlwq_run.jsonl"


def stamp(out: Path) -> int:
    """Return when the journal of a run in `out` was last changed, in nanoseconds; 0 where there is none."""
    path = out / JOURNAL
    return path.stat().st_mtime_ns if path.exists() else 0


def start(arguments: list[str]) -> int:
    """Fork a child that gives the command; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    try:
        app(arguments)
    except SystemExit as status:
        os._exit(int(status.code or 0))
    os._exit(70)


def wait_for_work(pid: int, out: Path) -> None:
    """Return when the run touches its journal, or has ended."""
    before = stamp(out)
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and stamp(out) == before:
        time.sleep(0.001)


def main(kills: int, seconds: float, reference: Path, out: Path, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    wanted, moments, done = tree(reference), random.Random(20), 0
    warm = out.with_name("warm")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        app([arguments[0], arguments[1], str(warm), *arguments[3:]])  # so that children inherit compiled code
    shutil.rmtree(warm)
    while done < kills:
        pid = start(arguments)
        wait_for_work(pid, out)
        time.sleep(moments.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == -signal.SIGKILL:
            done += 1
            continue
        if code != 0 or tree(out) != wanted:
            print(f"after {done} kills: exit {code}, {sorted(set(tree(out).items()) ^ set(wanted.items()))[:4]}")
        shutil.rmtree(out)
    print(f"kills {done}")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
