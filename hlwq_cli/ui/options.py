"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import UsageError
from .sink import Format

if TYPE_CHECKING:
    from ..runtime.modules.format import Execution

FormatOption = Annotated[Format, typer.Option("--format", help="How the result is written to stdout.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Same as --format json.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Same as --format quiet: one line.")]

ModelDeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda:0 ...")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16 or float32.")]
GpuMemoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="8.6GB",
        help="Stay below so much memory of the GPU: experts of PATH that have no room there lie in host memory.",
    ),
]
ExecutionOption = Annotated[str, typer.Option("--execution", help="auto, coded or dense.")]


def as_execution(given: str) -> Execution:
    """What --execution names.

    Raises:
        UsageError: it names nothing.
    """
    if given not in ("auto", "coded", "dense"):
        raise UsageError(f"--execution is auto, coded or dense, not {given!r}.")
    return cast("Execution", given)
