"""Classes checked in processes of their own, with limits of time and memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from scripts.checks.family.original import NotRunError
from scripts.checks.family.steps import MADE, Row, check_family
from scripts.checks.family.tiny_models import Family, first_line

SECONDS_PER_TYPE = 300
TOO_SLOW = "does not run: transformers takes too long to build it or run it"
MEMORY_BYTES = 8 * 2**30


def work(family: Family, folder: str, connection: Connection) -> None:
    """Check one class in a process of its own; the row, or the reason for having none, goes through `connection`."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  of this process only
    try:
        connection.send(check_family(family, Path(folder)))
    except NotRunError as error:
        connection.send(str(error))
    except BaseException as error:
        connection.send(Row(family, f"error: {first_line(error)}"))


@dataclass
class Job:
    """A running process."""

    family: Family
    process: Any
    connection: Connection
    folder: str
    deadline: float

    def end(self, answer: Row | str) -> Row | str:
        """Stop the process and remove its folder."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        return answer


def start(family: Family, seconds: float) -> Job:
    """Start a process that checks one class."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = tempfile.mkdtemp(prefix="hlwq-family-", dir=memory)
    process = context.Process(target=work, args=(family, folder, theirs), daemon=True)
    process.start()
    theirs.close()
    return Job(family, process, ours, folder, time.monotonic() + seconds)


def collect(job: Job) -> Row | str | None:
    """Return a job's answer once there is one; None while it runs."""
    if job.connection.poll():
        try:
            answer: Row | str = job.connection.recv()
        except EOFError:
            job.process.join()
            answer = Row(job.family, f"error: the process ended with {job.process.exitcode}")
        return job.end(answer)
    if time.monotonic() > job.deadline:
        ours = (Path(job.folder) / MADE).exists()
        return job.end(Row(job.family, "error: the time limit was reached") if ours else TOO_SLOW)
    return None


def sweep(chosen: Iterable[Family], jobs: int, seconds: float = SECONDS_PER_TYPE) -> Iterator[tuple[Family, Row | str]]:
    """Yield a row for each class, or the reason for having none, as they end."""
    waiting, running = list(chosen), []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(start(waiting.pop(0), seconds))
        wait([job.connection for job in running], timeout=1)
        for job in list(running):
            answer = collect(job)
            if answer is not None:
                running.remove(job)
                yield job.family, answer
