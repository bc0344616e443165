"""Children that give a command of hlwq and kill themselves at a chosen point of their work."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod")


def kill_before(number: int, folder: Path) -> Callable[[], int]:
    """Kill this process just before its `number`-th change below a folder or request to the Hub, from 0.

    Returns:
        A function that returns how many there were so far.
    """
    from huggingface_hub.utils import get_session  # the environment must be set before it is imported

    client_class = type(get_session())
    seen, send = 0, client_class.send

    def count() -> None:
        nonlocal seen
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & WRITES
            if writes and str(folder) in str(arguments[0]):
                count()
        elif event in CHANGES and any(str(folder) in str(a) for a in arguments[:2]):
            count()

    def counted(client: Any, *arguments: Any, **options: Any) -> Any:
        count()
        return send(client, *arguments, **options)

    sys.addaudithook(hook)
    client_class.send = counted  # type: ignore[method-assign]
    return lambda: seen


def forked(work: Callable[[], Any]) -> int:
    """Return the exit code of a child that does `work`, quietly; minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            work()
            code = 0
        except SystemExit as status:
            code = int(status.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def give(command: list[str], number: int | None, folder: Path) -> int:
    """Give a command in a child, which kills itself before change `number`; return its exit code."""
    from hlwq_cli.main import app

    def work() -> None:
        if number is not None:
            kill_before(number, folder)
        app(command)

    return forked(work)


def count_points(command: list[str], folder: Path) -> int:
    """Give a command in a child, which must succeed; return the number of points at which it could be killed."""
    from hlwq_cli.main import app

    counted = folder.with_name("points")

    def work() -> None:
        points = kill_before(-1, folder)
        try:
            app(command)
        finally:
            counted.write_text(str(points()))

    return int(counted.read_text()) if forked(work) == 0 else 0
