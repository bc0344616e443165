"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from .sink import Format

FormatOption = Annotated[Format, typer.Option("--format", help="How the result is written to stdout.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Same as --format json.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Same as --format quiet: one line.")]
