"""hlwq card: write a checkpoint's model card again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..ui import Format, FormatOption, JsonOption, QuietOption, Sink, handle_errors


@handle_errors
def card(
    path: Annotated[Path, typer.Argument(help="Folder with an HLWQ checkpoint.")],
    repo: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Hub id to load from, as the card states it.")
    ] = None,
    format: FormatOption = Format.auto,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write README.md again, with the figures of `hlwq bench --save`. Your notes below the card's last line stay."""
    sink = Sink(format, json, quiet)
    from ..checkpoint import is_repo_id
    from ..errors import UsageError
    from ..hub import remake_card

    if repo is not None and not is_repo_id(repo):
        raise UsageError(f"{repo} is not a valid repository id.", "Write owner/name.")
    result = remake_card(path, repo)
    for note in result.notes:
        sink.note(note)
    verb = "written" if result.changed else "unchanged"
    sink.result("card", result, lambda console: console.print(f"{result.path}: {verb}."), str(result.path))
