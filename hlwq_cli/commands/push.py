"""hlwq push: upload a checkpoint to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..ui import Format, FormatOption, JsonOption, QuietOption, Sink, handle_errors


@handle_errors
def push(
    path: Annotated[Path, typer.Argument(help="Folder with an HLWQ checkpoint.")],
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub; created if it does not exist.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Create a new repository as public; the default is private.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, created if it does not exist, or refs/pr/N.")] = None,
    pr: Annotated[bool, typer.Option("--pr", help="Open a pull request instead of changing main.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another checkpoint, or files that were changed there.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verify and show what would be sent; write nothing.")
    ] = False,
    format: FormatOption = Format.auto,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Verify a checkpoint, write its card and upload the files that the repository lacks, in one commit.

    Run the same command again to continue an interrupted push.
    """
    sink = Sink(format, json, quiet)
    from ..hub import push as upload
    from ..ui import hide_library_bars, progress_display, show_pushed

    hide_library_bars(sink)
    with progress_display(sink, uploads=True) as progress:
        result = upload(
            path,
            repo,
            public=public,
            revision=revision,
            pr=pr,
            overwrite=overwrite,
            dry_run=dry_run,
            progress=progress,
        )
    for note in result.notes:
        sink.note(note)
    show_pushed(sink, result)
