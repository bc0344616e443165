"""The fuzzer: two thousand mutated inputs are refused or right, and it finds faults that are planted."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hlwq_cli.errors import CorruptError
from scripts.checks import fuzz
from scripts.checks.fuzz_targets import TARGETS, Originals, WrongResult
from scripts.checks.mutations import mutate_document, mutate_safetensors, mutate_text

INPUTS = 2000


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Fuzzer:
    return fuzz.Fuzzer(1, tmp_path_factory.mktemp("fuzz"))


def test_mutated_inputs_are_refused_or_right(fuzzer: fuzz.Fuzzer) -> None:
    found = [f"1:{n} {o.target}: {o.problem}" for n in range(INPUTS) if (o := fuzzer.run(n)).problem]
    assert found == []


def planted(fuzzer: fuzz.Fuzzer, monkeypatch: pytest.MonkeyPatch, target: Callable[[Originals], None]) -> fuzz.Outcome:
    for name in TARGETS:
        monkeypatch.setitem(TARGETS, name, (lambda rng, originals: target(originals), 1))
    return fuzzer.run(0)


def raised(error: Exception) -> Callable[[Originals], None]:
    def target(originals: Originals) -> None:
        raise error

    return target


@pytest.mark.parametrize(
    ("target", "ending", "problem"),
    [
        (lambda at: None, "accepted", ""),
        (raised(CorruptError("It is broken.", "Fetch it again.")), "refused, exit 1", ""),
        (raised(CorruptError("broken")), "refused, exit 1", "an unclear message"),
        (raised(KeyError("version")), "failed", "KeyError: 'version' (test_fuzz.py:"),
        (raised(WrongResult("verify passes")), "wrong", "verify passes"),
        (lambda at: (at.work.parent / "planted").write_text("x"), "accepted", "changed files outside its folder: open"),
        (lambda at: (at.work / "case").mkdir(), "accepted", ""),
    ],
)
def test_planted_faults_are_found(
    fuzzer: fuzz.Fuzzer,
    monkeypatch: pytest.MonkeyPatch,
    target: Callable[[Originals], None],
    ending: str,
    problem: str,
) -> None:
    outcome = planted(fuzzer, monkeypatch, target)
    assert outcome.ending == ending
    assert outcome.problem.startswith(problem)
    assert bool(outcome.problem) == bool(problem)


def test_slow_and_stuck_inputs_are_found(fuzzer: fuzz.Fuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.01)
    assert planted(fuzzer, monkeypatch, lambda at: _work(0.02)).problem.startswith("took 0.0")
    monkeypatch.setattr(fuzz, "STUCK_SECONDS", 1)
    stuck = planted(fuzzer, monkeypatch, lambda at: time.sleep(60))
    assert stuck.problem.startswith("Stuck: no end after 1 s")


def _work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_an_input_is_the_same_each_time(fuzzer: fuzz.Fuzzer) -> None:
    data = (fuzzer.originals.source / "model.safetensors").read_bytes()
    first, second = (mutate_safetensors(random.Random("1:5"), data) for _ in range(2))
    assert first == second
    document = {"a": [1, {"b": "c"}], "d": 0.5}
    assert len({repr(mutate_document(random.Random(n), document)) for n in range(50)}) > 30
    assert document == {"a": [1, {"b": "c"}], "d": 0.5}
    assert mutate_text(random.Random(3), b'{"a": 1}') == mutate_text(random.Random(3), b'{"a": 1}')


def test_table_counts_every_input(fuzzer: fuzz.Fuzzer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUZZ_FOLDER", str(tmp_path))
    tally = fuzz.campaign(seed=2, count=20, jobs=1)
    assert tally.endings.total() == 20
    assert "20 inputs, " in fuzz.table(tally)
