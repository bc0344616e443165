"""hlwq inspect: show what is in a coded checkpoint, verify it, or compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..ui import Format, FormatOption, JsonOption, QuietOption, Sink, handle_errors


@handle_errors
def inspect(
    path: Annotated[str, typer.Argument(help="Folder with an HLWQ checkpoint, or a Hub id OWNER/NAME.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Check all hashes and all scales; exit with code 6 if one is wrong.")
    ] = False,
    diff: Annotated[
        Path | None,
        typer.Option(metavar="OTHER", help="Compare with another HLWQ folder; exit with code 6 if they differ."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    format: FormatOption = Format.auto,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show role, shape, bits, bytes and error of each tensor, a histogram of bits, and what stayed exact.

    Without --verify it reads only headers and small files, for a Hub id too.
    """
    sink = Sink(format, json, quiet)
    from ..errors import UsageError

    if verify and diff is not None:
        raise UsageError("--verify and --diff cannot be used together.", "Run one after the other.")
    if diff is not None:
        _diff(sink, path, diff, revision)
    elif verify:
        _verify(sink, path, revision)
    else:
        from ..checkpoint import inspect as describe
        from ..ui import show_inspected

        show_inspected(sink, describe(path, revision))


def _diff(sink: Sink, path: str, other: Path, revision: str | None) -> None:
    from ..checkpoint import diff
    from ..errors import GateMissedError
    from ..ui import show_diff

    report = diff(path, other, revision)
    show_diff(sink, report)
    if not report.identical:
        raise GateMissedError("The checkpoints differ.")


def _verify(sink: Sink, path: str, revision: str | None) -> None:
    from ..checkpoint import open_coded
    from ..checkpoint import verify as check
    from ..errors import GateMissedError
    from ..ui import progress_display, show_verified

    checkpoint = open_coded(path, revision)
    with progress_display(sink) as progress:
        report = check(checkpoint, progress)
    checkpoint.close()
    show_verified(sink, report)
    if report.problems:
        raise GateMissedError(f"{report.verdict}: {report.problems[0]}.", "Fetch those files again.")
