"""Turn exceptions into error messages and exit codes."""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

import typer

from ..errors import HlwqError
from ..printable import one_line, printable

P = ParamSpec("P")
INTERRUPTED = 130
_CONTINUING = ("quantize", "export", "push")
"""Commands that continue an interrupted run; others start anew."""
_SECRET = {"--auth": "USER:PASSWORD", "--api-key": "KEY"}
"""Options whose values are never shown, and what is shown instead."""
_TOKENS = re.compile(r"\bhf_[A-Za-z0-9]{10,}|(?<=Bearer )[^'\"\s]+")
"""Tokens of the Hub, and whatever stands in their place in a request."""


def handle_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command: an exception becomes a message on stderr and an exit code. HLWQ_DEBUG=1 adds the traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            _say("Interrupted.", _again())
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
        sys.stderr.write(printable(without_secrets(traceback.format_exc())))


def _say(what: str, hint: str) -> None:
    sys.stderr.write("".join(f"{one_line(without_secrets(line))}\n" for line in (f"Error: {what}", hint) if line))


def _again() -> str:
    """Return the line that gives an interrupted command again, and what that does."""
    words = list(sys.argv[1:])
    for i, word in enumerate(words):
        option, equals, _ = word.partition("=")
        if equals and option in _SECRET:
            words[i] = f"{option}={_SECRET[option]}"
        elif i and words[i - 1] in _SECRET:
            words[i] = _SECRET[words[i - 1]]
    verb = "Continue with" if words[:1] and words[0] in _CONTINUING else "Run it again with"
    return f"{verb}: {shlex.join(['hlwq', *words])}"


def without_secrets(text: str) -> str:
    """Return a text without tokens of the Hub and without the secrets of demo and serve."""
    secrets = [
        os.environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HLWQ_DEMO_AUTH", "HLWQ_API_KEY")
    ]
    for secret in filter(None, secrets):
        text = text.replace(secret, "***").replace(ascii(secret)[1:-1], "***")
    return _TOKENS.sub("***", text)
