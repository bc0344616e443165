"""Kills a run with SIGKILL before each change it makes to its output folder, resumes it, and prints what went wrong.

    python -m tests.checkpoint.run.kill_points SOURCE REFERENCE WORK

One process loads everything once and forks: a child runs until just before its Nth create, rename, truncate or
unlink under WORK and kills itself; a second child gives the same command again. REFERENCE is an undisturbed result.
Prints the number of kills, then a line for each resumed folder that differs.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hlwq_cli.checkpoint import load_recipe, quantize
from tests.support.files import tree

SHARD_BYTES = 150_000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def changes(event: str, args: tuple[Any, ...]) -> bool:
    """Whether an audit event changes files."""
    if event == "open":
        return bool(args[2] & WRITES)
    return event in ("os.rename", "os.remove", "os.truncate", "os.mkdir")


def run(source: str, out: Path, kill_at: int | None) -> None:
    """Quantize; with `kill_at`, die before that many-th change to `out` (from 0)."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if changes(event, args) and str(out) in str(args[0]):
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    if kill_at is not None:
        sys.addaudithook(hook)
    quantize(source, out, load_recipe(), max_shard_bytes=SHARD_BYTES, threads=1)


def forked(work: Callable[[], None]) -> int:
    """The exit code of a child that does `work`; minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def problem(source: str, out: Path, wanted: dict[str, str]) -> str:
    """What is wrong with a killed run's folder after the same command; empty when nothing is."""
    code = forked(lambda: run(source, out, None))
    found = tree(out) if out.exists() else {}
    odd = sorted({name for name, _ in set(found.items()) ^ set(wanted.items())})
    return "" if code == 0 and not odd else f"exit {code}, differs in {odd}"


def main(source: str, reference: str, work: str) -> None:
    torch.set_num_threads(1)
    run(source, Path(work) / "warm", None)  # so that children inherit compiled code
    gc.freeze()  # so that children share this memory
    wanted, kills = tree(Path(reference)), 0
    while forked(functools.partial(run, source, Path(work) / str(kills), kills)) == -signal.SIGKILL:
        wrong = problem(source, Path(work) / str(kills), wanted)
        if wrong:
            print(f"killed before change {kills}: {wrong}")
        shutil.rmtree(Path(work) / str(kills), ignore_errors=True)
        kills += 1
    print(f"kills {kills}")


if __name__ == "__main__":
    main(*sys.argv[1:])
