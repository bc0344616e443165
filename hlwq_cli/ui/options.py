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
KvBitsOption = Annotated[
    str | None, typer.Option("--kv-bits", metavar="4|4,3", help="Store keys and values in codes of 2 to 8 bits.")
]
SystemOption = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="System prompt, if the chat template takes one.")
]
MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Length of the longest answer, in tokens.")
]
TemperatureOption = Annotated[float, typer.Option("--temperature", min=0.0, help="Of sampling; 0 is greedy.")]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=2**63 - 1, help="Of sampling; the same seed gives the same answer."),
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
        raise UsageError(f"--execution must be auto, coded or dense, not {given!r}.", "Use one of these.")
    return cast("Execution", given)
