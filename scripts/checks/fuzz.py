"""Give hlwq mutated files and check that it refuses them with a sentence, or is right: a seeded fuzzer.

    python scripts/checks/fuzz.py --count 2000 --seed 1
    python scripts/checks/fuzz.py --replay 1:1234

The inputs are files of a source (weights, index, configuration, tokenizer, card), of a result (manifest, shards and all
others) and recipes, with structure-aware mutations, and links and special files. An input passes if it is refused by an
HlwqError, or if it is accepted and the result is right; in at most a second of processor time, with at most 600 MB more
memory, and without writing outside its folder. Input N of a seed is always the same. Prints a table, and a line for
each finding; exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hlwq_cli.errors import HlwqError
from scripts.checks.fuzz_targets import TARGETS, Originals, WrongResult, readable

MAX_SECONDS = 1.0
"""Of processor time, which other programs do not change."""
STUCK_SECONDS = 120
MAX_MEMORY_BYTES = 600 * 10**6
_BATCH = 500
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_HARMLESS = ("/dev/null", "/dev/tty")


@dataclass(frozen=True)
class Outcome:
    """What an input did: its target, whether it was accepted or how it was refused, and what is wrong, if anything."""

    target: str
    ending: str
    problem: str = ""


@dataclass
class Tally:
    """Outcomes of many inputs."""

    endings: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add the outcomes of other inputs."""
        self.endings += other.endings
        self.findings += other.findings


class Watch:
    """Notes files that are changed outside a folder, by Python's audit events."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.outside: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & _WRITES
            places = [arguments[0]] if writes else []
        elif event in ("os.rename", "os.link", "os.symlink"):
            places = [arguments[1]]
        elif event in ("os.remove", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree"):
            places = [arguments[0]]
        else:
            return
        for place in places:
            if isinstance(place, str) and os.path.isabs(place) and place not in _HARMLESS:
                real = os.path.realpath(os.path.dirname(place))
                if not (real + "/").startswith(self.folder + "/"):
                    self.outside.append(f"{event} {place}")


class Stuck(BaseException):
    """An input took far too long."""


class Fuzzer:
    """Runs inputs in this process."""

    def __init__(self, seed: int, folder: Path) -> None:
        torch.set_num_threads(1)
        self.seed = seed
        self.originals = Originals.make(folder)
        self.watch = Watch()
        self._names = list(TARGETS)
        self._weights = [weight for _, weight in TARGETS.values()]
        signal.signal(signal.SIGALRM, _raise_stuck)

    def run(self, number: int, keep: bool = False) -> Outcome:
        """Run one input, a second time if it was slow, as the first call of some functions imports what they need.

        With `keep`, leave its files and print the traceback of a problem.
        """
        outcome = self._run_once(number, keep)
        return self._run_once(number, keep) if outcome.problem.startswith("took") else outcome

    def _run_once(self, number: int, keep: bool) -> Outcome:
        rng = random.Random(f"{self.seed}:{number}")
        name = rng.choices(self._names, self._weights)[0]
        self._clear()
        self.watch.folder, self.watch.outside = str(self.originals.work.resolve()), []
        memory, began = _peak_bytes(), time.process_time()
        ending, problem = self._call(name, rng, keep)
        seconds, memory = time.process_time() - began, _peak_bytes() - memory
        self.watch.folder = None
        if not problem and seconds > MAX_SECONDS:
            problem = f"took {seconds:.1f} s"
        if not problem and memory > MAX_MEMORY_BYTES:
            problem = f"took {memory // 10**6} MB more memory"
        if not problem and self.watch.outside:
            problem = f"changed files outside its folder: {self.watch.outside[0]}"
        if not keep:
            self._clear()
        return Outcome(name, ending, problem)

    def _call(self, name: str, rng: random.Random, keep: bool) -> tuple[str, str]:
        signal.alarm(STUCK_SECONDS)
        try:
            TARGETS[name][0](rng, self.originals)
            return "accepted", ""
        except HlwqError as error:
            vague = not error.what.endswith((".", "!", "?"))
            return f"refused, exit {error.exit_code}", f"an unclear message: {error!r}" if vague else ""
        except WrongResult as error:
            return "wrong", str(error)
        except (Exception, Stuck) as error:
            if keep:
                traceback.print_exc()
            place = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(str(error).split())[:200]
            return "failed", f"{type(error).__name__}: {said} ({Path(place.filename).name}:{place.lineno})"
        finally:
            signal.alarm(0)

    def _clear(self) -> None:
        for path in self.originals.work.iterdir():
            readable(path)
            shutil.rmtree(path)


def _raise_stuck(number: int, frame: object) -> None:
    raise Stuck(f"no end after {STUCK_SECONDS} s")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_fuzzer: Fuzzer | None = None


def run_batch(seed: int, first: int, count: int) -> Tally:
    """Run inputs `first` to `first + count` of a seed, in a process that keeps its originals."""
    global _fuzzer
    if _fuzzer is None or _fuzzer.seed != seed:
        _fuzzer = Fuzzer(seed, Path(tempfile.mkdtemp(prefix="fuzz-", dir=os.environ["FUZZ_FOLDER"])))
    tally = Tally()
    for number in range(first, first + count):
        outcome = _fuzzer.run(number)
        tally.endings[outcome.target, outcome.ending] += 1
        if outcome.problem:
            tally.findings.append(f"{seed}:{number} {outcome.target}: {outcome.problem}")
    return tally


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """Make a folder in memory, where the files of a process are, and remove it at the end."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="hlwq-fuzz-", dir=memory) as folder:
        os.environ["FUZZ_FOLDER"] = folder
        yield Path(folder)


def campaign(seed: int, count: int, jobs: int, minutes: float | None = None) -> Tally:
    """Run inputs 0 to `count` of a seed in `jobs` processes, or those that `minutes` suffice for."""
    tally, began = Tally(), time.monotonic()
    batches = [(seed, first, min(_BATCH, count - first)) for first in range(0, count, _BATCH)]
    with work_folder(), contextlib.ExitStack() as stack:
        if jobs == 1:
            results: Iterator[Tally] = (run_batch(*batch) for batch in batches)
        else:
            pool = stack.enter_context(ProcessPoolExecutor(jobs))
            results = iter(pool.map(run_batch, *zip(*batches, strict=True)))
        for found in results:
            tally.add(found)
            for line in found.findings:
                print(line, flush=True)
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                break
    return tally


def table(tally: Tally) -> str:
    """Return the outcomes as a Markdown table."""
    endings = sorted({ending for _, ending in tally.endings})
    lines = ["| input | " + " | ".join(endings) + " |", "|---" * (len(endings) + 1) + "|"]
    for name in TARGETS:
        counts = [f"{tally.endings[name, ending]:,}" for ending in endings]
        lines.append(f"| {name} | " + " | ".join(counts) + " |")
    return "\n".join(lines) + f"\n\n{tally.endings.total():,} inputs, {len(tally.findings)} findings"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=2000, help="number of inputs")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--minutes", type=float, help="end after this time, with the inputs done until then")
    parser.add_argument("--replay", metavar="SEED:N", help="run one input, keep its files and show the traceback")
    options = parser.parse_args()
    if options.replay:
        seed, _, number = options.replay.partition(":")
        fuzzer = Fuzzer(int(seed), Path(tempfile.mkdtemp(prefix="fuzz-")))
        outcome = fuzzer.run(int(number), keep=True)
        print(f"{outcome.target}: {outcome.ending}. {outcome.problem}\nIts files are in {fuzzer.originals.work}.")
        return int(bool(outcome.problem))
    began = time.monotonic()
    tally = campaign(options.seed, options.count, options.jobs, options.minutes)
    print(f"{table(tally)}, {time.monotonic() - began:.0f} s")
    return int(bool(tally.findings))


if __name__ == "__main__":
    sys.exit(main())
