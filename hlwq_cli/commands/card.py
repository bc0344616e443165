"""hlwq card: a checkpoint's model card, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..ui.errors import handle_errors
from ..ui.options import FormatOption, JsonOption, QuietOption
from ..ui.sink import Format, Sink


@handle_errors
def card(
    path: Annotated[Path, typer.Argument(help="An HLWQ folder.")],
    repo: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Hub id that the card says to load from.")
    ] = None,
    format: FormatOption = Format.auto,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write README.md anew, with the figures that `hlwq bench --save` left; your own notes below its last line stay."""
    sink = Sink(format, json, quiet)
    from ..checkpoint.io.hub_repo import is_repo_id
    from ..errors import UsageError
    from ..hub.card import remake_card

    if repo is not None and not is_repo_id(repo):
        raise UsageError(f"{repo} is no name of a repository.", "Write owner/name.")
    result = remake_card(path, repo)
    for note in result.notes:
        sink.note(note)
    verb = "written" if result.changed else "unchanged"
    sink.result("card", result, lambda console: console.print(f"{result.path}: {verb}."), str(result.path))
