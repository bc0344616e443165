"""Options that several commands have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import UsageError
from .sink import Format

if TYPE_CHECKING:
    from ..runtime.modules import Execution

FormatOption = Annotated[Format, typer.Option("--format", help="Form of the result on stdout; auto is human.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Same as --format json.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Same as --format quiet: one line.")]

ModelDeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda:0 and so on.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16 or float32.")]
GpuMemoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="8.6GB",
        help="Limit for GPU memory; experts of PATH that do not fit are kept in host memory.",
    ),
]
ExecutionOption = Annotated[
    str, typer.Option("--execution", help="auto, coded (multiply by codes) or dense (decode first).")
]


def as_execution(given: str) -> Execution:
    """Check the value of --execution.

    Raises:
        UsageError: it is not `auto`, `coded` or `dense`.
    """
    if given not in ("auto", "coded", "dense"):
        raise UsageError(f"--execution must be auto, coded or dense, not {given!r}.")
    return cast("Execution", given)
