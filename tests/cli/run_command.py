"""Run `hlwq` in this process, or as its own process where signals, terminals or limits matter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tests.support.forked_process import ForkedProcess, ForkServer

Process = ForkedProcess | subprocess.Popen[str]
COMMAND = [sys.executable, "-m", "hlwq_cli.main"]
_DROPPED = ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "HLWQ_DEBUG", "HF_TOKEN", "HF_HUB_DISABLE_PROGRESS_BARS")
_COLLECTED = {k: v for k, v in os.environ.items() if k not in _DROPPED}


@dataclass(frozen=True)
class CommandResult:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


def hlwq(*args: str | Path, env: dict[str, str | None] | None = None, stdin: bytes | None = None) -> CommandResult:
    """Run the command in this process."""
    from hlwq_cli.main import app

    result = CliRunner().invoke(app, [str(a) for a in args], env=env, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return CommandResult(result.exit_code, result.stdout, result.stderr)


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a user of the stand-in Hub: that of these tests when they were collected.

    It lacks variables that change colours, width or bars of the output, and those that libraries set later here.
    """
    return _COLLECTED | changes


@lru_cache(maxsize=1)
def _fork_server() -> ForkServer:
    return ForkServer(environment())


def start(
    *args: str | Path,
    env: dict[str, str] | None = None,
    **options: Any,
) -> ForkedProcess:
    """Start the command as its own process, forked from one that has imported everything; see ForkedProcess."""
    return ForkedProcess(_fork_server(), [*map(str, args)], env or environment(), **options)


def start_anew(*args: str | Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start the command as a new process, which imports everything itself: slower by two to eight seconds.

    Its interrupt signal works as in a terminal: a job in the background of a shell ignores it.
    """
    return subprocess.Popen(
        [*COMMAND, *map(str, args)],
        env=env or environment(),
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )


def start_process(*args: str | Path, env: dict[str, str] | None = None, **options: Any) -> Process:
    """Start the command as its own process; a new one if `env` has other variables that imports read."""
    how = start if _fork_server().can_run(env or environment()) else start_anew
    return how(*args, env=env, **options)


def hlwq_process(*args: str | Path, env: dict[str, str] | None = None, **options: Any) -> CommandResult:
    """Run the command as its own process; see `start_process`."""
    process = start_process(*args, env=env, **options)
    out, err = process.communicate(timeout=120)
    return CommandResult(process.wait(), out, err)


def hlwq_python(code: str, timeout: float = 120) -> CommandResult:
    """Run Python code as its own process, which has imported what `hlwq quantize` needs."""
    process = start("quantize", before=f"{code}\nraise SystemExit")
    out, err = process.communicate(timeout)
    return CommandResult(process.wait(), out, err)


def assert_refused(ran: CommandResult, code: int, *says: str) -> None:
    """Check a refusal: exit code, empty stdout, one sentence that says what is wrong and one that says what to do."""
    assert ran.code == code, ran
    assert ran.out == ""
    lines = ran.err.splitlines()
    assert len(lines) == 2, ran.err
    what, hint = lines
    assert what.startswith("Error: "), what
    assert what.endswith("."), what
    assert hint[0].isupper() or hint[0] == "`", hint
    assert hint.endswith("."), hint
    assert "Unexpected" not in what, what
    for text in says:
        assert text in ran.err, ran.err
