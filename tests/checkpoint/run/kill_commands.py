"""Kills a command with SIGKILL before each change it makes to its folder, and gives it again.

All is loaded once. A forked child runs until just before its Nth create, rename, truncate or unlink in the folder and
kills itself; then the same command is given again.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hlwq_cli.checkpoint import export, load_recipe, quantize
from hlwq_cli.hub import remake_card
from tests.support.builders import LLAMA, add_sidecar_files, dense, save_tensors
from tests.support.files import tree

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Case:
    """A command: what is in the folder before it, what it does, and what the folder holds in the end."""

    prepare: Callable[[Path], Any]
    command: Callable[[Path], Any]


def changes(event: str, args: tuple[Any, ...]) -> bool:
    """Whether an audit event changes files."""
    if event == "open":
        return bool(args[2] & WRITES)
    return event in ("os.rename", "os.remove", "os.truncate", "os.mkdir")


def forked(work: Callable[[], Any]) -> int:
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


def killed(command: Callable[[Path], Any], folder: Path, kill_at: int, name: str = "") -> None:
    """Do `command` and die before its `kill_at`-th change to `folder`, counted from 0; or to files of this name."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if changes(event, args) and str(folder) in str(args[0]) and name in str(args[0]):
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(hook)
    command(folder)


def main(work: Path) -> None:
    """Print a line for each case: its name, the number of kills, and what went wrong."""
    torch.set_num_threads(1)
    for name, case in cases(work).items():
        kills, wrong = campaign(case, work / f"{name}-reference", work / name)
        print(name, kills, *wrong, sep="\t", flush=True)


def campaign(case: Case, reference: Path, folder: Path) -> tuple[int, list[str]]:
    """Kill the command before each change in turn; return the number of kills, and what went wrong."""
    case.prepare(reference)
    case.command(reference)
    wanted, kills, wrong = tree(reference), 0, []
    while True:
        case.prepare(folder)
        code = forked(functools.partial(killed, case.command, folder, kills))
        if code != -signal.SIGKILL:
            return kills, wrong if code == 0 else [*wrong, f"not killed: exit {code}"]
        wrong += [f"killed before change {kills}: {problem}" for problem in again(case.command, folder, wanted)]
        shutil.rmtree(folder, ignore_errors=True)
        kills += 1


def again(command: Callable[[Path], Any], folder: Path, wanted: dict[str, str]) -> list[str]:
    """Give the command again; return what went wrong. Here, as a fork of this process costs more than the command."""
    try:
        command(folder)
    except Exception as error:
        return [repr(error)]
    found = tree(folder)
    odd = sorted({n for n, _ in set(found.items()) ^ set(wanted.items())})
    return [f"differs in {odd}"] if odd else []


def cases(work: Path) -> dict[str, Case]:
    """All cases; the sources and a coded checkpoint are made in `work`."""
    first = save_tensors(work / "first", dense(3), LLAMA)
    (first / "assets").mkdir()
    for file in ("chat_template.jinja", "generation_config.json", "assets/notes.txt"):
        (first / file).write_text("of the first model")
    second = save_tensors(work / "second", dense(2, seed=1), LLAMA)
    (second / "tokenizer.json").write_text("{}")
    coded, recipe, options = work / "coded", load_recipe(), {"max_shard_bytes": 20_000, "threads": 1}

    source = save_tensors(work / "source", dense(3, seed=2), LLAMA)
    add_sidecar_files(source)

    def code(model: Path, out: Path, overwrite: bool = True) -> None:
        quantize(str(model), out, recipe, overwrite=overwrite, **options)  # type: ignore[arg-type]

    def copy(out: Path) -> None:
        shutil.copytree(coded, out)

    def with_a_note(out: Path) -> None:
        """A finished result, and a file of the user."""
        copy(out)
        (out / "mine.txt").write_text("mine")

    code(first, coded)
    run = functools.partial(killed, functools.partial(code, first), work / "unfinished", 0, "hlwq_manifest.json")
    assert forked(run) == -signal.SIGKILL
    assert (work / "unfinished" / "chat_template.jinja").exists()
    return {
        "quantize": Case(lambda out: None, functools.partial(code, source, overwrite=False)),
        "overwrite": Case(with_a_note, functools.partial(code, second)),
        "replace-unfinished": Case(
            lambda out: shutil.copytree(work / "unfinished", out), functools.partial(code, second)
        ),
        "export": Case(lambda out: None, lambda out: export(coded, out, max_shard_bytes=40_000)),
        "card": Case(copy, lambda out: remake_card(out, "ann/model")),
    }
