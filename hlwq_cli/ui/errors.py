"""Turn exceptions into error messages and exit codes."""

from __future__ import annotations

import functools
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

import typer

from ..errors import HlwqError

P = ParamSpec("P")
INTERRUPTED = 130


def handle_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command: an exception becomes a message on stderr and an exit code. HLWQ_DEBUG=1 adds the traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            _say("Interrupted.", f"Continue with: {shlex.join(['hlwq', *sys.argv[1:]])}")
            raise typer.Exit(INTERRUPTED) from None
        except HlwqError as error:
            _debug()
            _say(error.what, error.hint)
            raise typer.Exit(error.exit_code) from None
        except MemoryError:
            _debug()
            _say("There is not enough memory.", "Close other programs, or lower --threads.")
            raise typer.Exit(1) from None
        except Exception as error:
            _debug()
            _say(f"Unexpected {type(error).__name__}: {error}", "HLWQ_DEBUG=1 shows the traceback; please report this.")
            raise typer.Exit(1) from None

    return run


def _debug() -> None:
    if os.environ.get("HLWQ_DEBUG") == "1":
        traceback.print_exc()


def _say(what: str, hint: str) -> None:
    sys.stderr.write(f"Error: {what}\n" + (f"{hint}\n" if hint else ""))
