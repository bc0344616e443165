"""Run `hlwq` in this process, or as its own process where signals, terminals or limits matter."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

COMMAND = [sys.executable, "-m", "hlwq_cli.main"]


@dataclass(frozen=True)
class CommandResult:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


def hlwq(*args: str | Path, env: dict[str, str | None] | None = None) -> CommandResult:
    """Run the command in this process."""
    from hlwq_cli.main import app

    result = CliRunner().invoke(app, [str(a) for a in args], env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return CommandResult(result.exit_code, result.stdout, result.stderr)


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without variables that change colours or width of the output."""
    dropped = ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "HLWQ_DEBUG", "HF_TOKEN")
    return {k: v for k, v in os.environ.items() if k not in dropped} | changes


def hlwq_process(*args: str | Path, env: dict[str, str] | None = None, **options: Any) -> CommandResult:
    """Run the command as its own process."""
    done = subprocess.run(
        [*COMMAND, *map(str, args)], env=env or environment(), capture_output=True, text=True, timeout=120, **options
    )
    return CommandResult(done.returncode, done.stdout, done.stderr)


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
