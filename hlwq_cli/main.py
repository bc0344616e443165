"""The `hlwq` command: lists the subcommands and imports one only when it is called."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ._version import __version__

COMMANDS = ("quantize", "inspect", "bench", "generate", "chat", "serve", "demo", "export", "card", "push")
_INTERRUPTED = 130
_EPILOG = (
    "HLWQ_DEBUG=1 shows tracebacks. HLWQ_AUTOLOAD=0 keeps Python from registering with transformers at its start. "
    "HLWQ_TRACE=FILE records what each thread of quantize does. "
    "HLWQ_DEMO_AUTH=USER:PASSWORD is the login of the demo page, HLWQ_API_KEY the key of serve. "
    "HF_TOKEN, HF_HOME, HF_ENDPOINT and NO_COLOR have their usual meaning."
)


def _command_class(optional_values: dict[str, str]) -> type[TyperCommand]:
    """Return the class of a command with options whose values may be left out; typer has no way to declare them.

    Args:
        optional_values: the value that stands for none, by option.
    """

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            """Fill in a value where an option is the last word, or another option follows it."""
            filled: list[str] = []
            for at, word in enumerate(args):
                filled.append(word)
                if word in optional_values and (at + 1 == len(args) or args[at + 1].startswith("-")):
                    filled.append(optional_values[word])
            return super().parse_args(ctx, filled)

    return Command


class _LazyGroup(TyperGroup):
    """Imports a subcommand from hlwq_cli/commands when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        try:
            module = importlib.import_module(f"hlwq_cli.commands.{cmd_name}")
        except KeyboardInterrupt:  # typer would end with 1
            sys.stderr.write("Error: Interrupted.\n")
            raise SystemExit(_INTERRUPTED) from None
        single = typer.Typer(add_completion=False)
        single.command(cmd_name, cls=_command_class(getattr(module, "OPTIONAL_VALUES", {})))(getattr(module, cmd_name))
        return typer.main.get_command(single)


app = typer.Typer(
    name="hlwq",
    cls=_LazyGroup,
    no_args_is_help=True,
    epilog=_EPILOG,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"hlwq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Quantize language models to packed Hadamard-Lloyd codes, measure them, and run them."""


def main() -> None:
    """Run the command line; the entry point of the console script."""
    try:
        app()
    except SystemExit as status:
        if sys.argv[1:2] == ["quantize"]:
            from .startup import exit_fast_on_gpu

            exit_fast_on_gpu(status)
        raise


if __name__ == "__main__":
    main()
