"""hlwq demo: chat with a checkpoint in the browser."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..ui import (
    INTERRUPTED,
    DtypeOption,
    ExecutionOption,
    Format,
    FormatOption,
    GpuMemoryOption,
    JsonOption,
    ModelDeviceOption,
    QuietOption,
    Sink,
    as_execution,
    handle_errors,
)

if TYPE_CHECKING:
    from ..runtime.modules import Execution


@handle_errors
def demo(
    path: Annotated[str, typer.Argument(help="Checkpoint, coded or plain: a folder, a Hub id or 'sample'.")],
    compare: Annotated[
        str | None, typer.Option(metavar="REF", help="Second checkpoint; both answer side by side.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on 127.0.0.1; default is the first free one from 7860.")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Create a public address through Gradio, protected by a login.")
    ] = False,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD",
            envvar="HLWQ_DEMO_AUTH",
            show_envvar=True,
            help="Login for the page; with --share the default is a generated one, shown once.",
        ),
    ] = None,
    open_to_all: Annotated[bool, typer.Option("--open", help="With --share: require no login.")] = False,
    device: ModelDeviceOption = "auto",
    dtype: DtypeOption = "auto",
    execution: ExecutionOption = "auto",
    kv_bits: Annotated[
        str | None,
        typer.Option(metavar="4|4,3", help="Store keys and values of PATH, not of REF, in codes of 2 to 8 bits."),
    ] = None,
    gpu_memory: GpuMemoryOption = None,
    format: FormatOption = Format.auto,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Serve a web page to chat with a checkpoint, until Ctrl-C. Models that support images accept pictures."""
    sink = Sink(format, json, quiet)
    try:
        how = as_execution(execution)
        load = _Load(device, dtype, how, kv_bits, gpu_memory)
        _serve(sink, [path] if compare is None else [path, compare], load, (share, open_to_all, auth), port)
    except KeyboardInterrupt:  # there is nothing to continue
        sink.note("Stopped.")
        raise typer.Exit(INTERRUPTED) from None


def _serve(sink: Sink, paths: list[str], load: _Load, sharing: tuple[bool, bool, str | None], port: int | None) -> None:
    from ..runtime.kv import KVBits
    from ..runtime.offload import ExpertBudget
    from ..ui import show_demo, show_login
    from ..ui.demo import check_gradio, check_port, choose_access, ended_by_signals, gradio_environment, served

    access = choose_access(*sharing)
    check_gradio()
    check_port(port)
    if load.kv_cache_nbits is not None:  # these raise before anything is loaded
        load = replace(load, kv_cache_nbits=str(KVBits.parse(load.kv_cache_nbits)))
    ExpertBudget.parse(None, load.gpu_memory)
    with ended_by_signals(), gradio_environment():
        page = _page(sink, paths, load)
        with served(page, access, port) as address:
            show_login(sink, access)
            show_demo(sink, address)
            threading.Event().wait()


@dataclass(frozen=True)
class _Load:
    """Arguments for loading a checkpoint; see `load_model`."""

    device: str
    dtype: str
    execution: Execution
    kv_cache_nbits: str | None
    gpu_memory: str | None


def _page(sink: Sink, paths: list[str], load: _Load) -> Any:
    from ..progress import Progress
    from ..runtime import HLWQModel
    from ..ui import hide_library_bars, progress_display, quiet_log
    from ..ui.demo import ShownModel, build_page, describe

    shown = []
    hide_library_bars(sink)
    with quiet_log(sink), progress_display(sink) as progress:
        for i, path in enumerate(paths):
            progress(Progress(f"loading {path}", i, len(paths), "steps"))
            settings = asdict(load if i == 0 else replace(load, kv_cache_nbits=None, gpu_memory=None))
            model = HLWQModel.from_pretrained(path, **settings)
            shown.append(ShownModel(model, describe(path, model)))
    return build_page(shown)
