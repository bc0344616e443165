"""hlwq export: decode a coded checkpoint to a plain one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..sizes import format_size, parse_size
from ..ui import Format, FormatOption, JsonOption, QuietOption, Sink, handle_errors


@handle_errors
def export(
    path: Annotated[str, typer.Argument(help="Folder with an HLWQ checkpoint, or a Hub id OWNER/NAME.")],
    out: Annotated[Path, typer.Argument(help="Output folder; must be empty or not exist.")],
    to: Annotated[
        str, typer.Option(help="Dtype of decoded weights: bf16, f16 or f32. Kept tensors keep their own.")
    ] = "bf16",
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Maximum size of an output file.")] = "4GB",
    format: FormatOption = Format.auto,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a plain checkpoint that any tool loads, with the names and layout of the source."""
    sink = Sink(format, json, quiet)
    from ..checkpoint import export as decode_to
    from ..ui import progress_display

    with progress_display(sink) as progress:
        result = decode_to(path, out, to, max_shard_bytes=parse_size(max_shard_size), progress=progress)
    sink.result(
        "export",
        result,
        lambda console: console.print(
            f"{result.path}: {result.tensors} tensors, {format_size(result.bytes)}, plain {to}"
        ),
        str(result.path),
    )
