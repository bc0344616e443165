"""Kills a command with SIGKILL before each change it makes to its folder, gives it again, and prints what went wrong.

    python -m tests.checkpoint.run.kill_commands overwrite|replace-unfinished|export|card WORK

One process loads everything once and forks, as kill_points.py does. Prints the number of kills, then a line for each
folder that differs from that of an undisturbed command.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hlwq_cli.checkpoint import export, load_recipe, quantize
from hlwq_cli.hub import remake_card
from tests.checkpoint.run.kill_points import changes, forked
from tests.support.builders import LLAMA, dense, save_tensors
from tests.support.files import tree


@dataclass(frozen=True)
class Case:
    """A command: what is in the folder before it, what it does, and what the folder holds in the end."""

    prepare: Callable[[Path], None]
    command: Callable[[Path], Any]


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


def main(name: str, work: Path) -> None:
    torch.set_num_threads(1)
    case = cases(work)[name]
    reference, folder = work / "reference", work / "folder"
    case.prepare(reference)
    case.command(reference)
    wanted, kills = tree(reference), 0
    while True:
        case.prepare(folder)
        if forked(functools.partial(killed, case.command, folder, kills)) != -signal.SIGKILL:
            break
        code = forked(functools.partial(case.command, folder))
        found = tree(folder)
        if code or found != wanted:
            odd = sorted({n for n, _ in set(found.items()) ^ set(wanted.items())})
            print(f"killed before change {kills}: exit {code}, differs in {odd}")
        shutil.rmtree(folder)
        kills += 1
    print(f"kills {kills}")


def cases(work: Path) -> dict[str, Case]:
    """All cases; the sources and a coded checkpoint are made in `work`."""
    first = save_tensors(work / "first", dense(3), LLAMA)
    (first / "assets").mkdir()
    for file in ("chat_template.jinja", "generation_config.json", "assets/notes.txt"):
        (first / file).write_text("of the first model")
    second = save_tensors(work / "second", dense(2, seed=1), LLAMA)
    (second / "tokenizer.json").write_text("{}")
    coded, recipe, options = work / "coded", load_recipe(), {"max_shard_bytes": 20_000, "threads": 1}

    def code(model: Path, out: Path) -> None:
        quantize(str(model), out, recipe, overwrite=True, **options)  # type: ignore[arg-type]

    def with_a_note(out: Path) -> None:
        """A finished result, and a file of the user."""
        code(first, out)
        (out / "mine.txt").write_text("mine")

    def unfinished(out: Path) -> None:
        """A run that was killed before it wrote its manifest."""
        run = functools.partial(killed, functools.partial(code, first), out, 0, "hlwq_manifest.json")
        assert forked(run) == -signal.SIGKILL
        assert (out / "chat_template.jinja").exists()

    def copy(out: Path) -> None:
        shutil.copytree(coded, out)

    code(first, coded)
    return {
        "overwrite": Case(with_a_note, functools.partial(code, second)),
        "replace-unfinished": Case(unfinished, functools.partial(code, second)),
        "export": Case(lambda out: None, lambda out: export(coded, out, max_shard_bytes=40_000)),
        "card": Case(copy, lambda out: remake_card(out, "ann/model")),
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
