"""hlwq serve: an OpenAI-compatible endpoint on the server of vLLM or of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ..ui import (
    INTERRUPTED,
    DtypeOption,
    Format,
    FormatOption,
    GpuMemoryOption,
    JsonOption,
    KvBitsOption,
    ModelDeviceOption,
    QuietOption,
    Sink,
    handle_errors,
)


@dataclass(frozen=True)
class Endpoint:
    """What is served, and where.

    Attributes:
        url: the address of the API.
        model: its name there.
        engine: the library that serves it.
    """

    url: str
    model: str
    engine: str


@handle_errors
def serve(
    path: Annotated[str, typer.Argument(help="Checkpoint, coded or plain: a folder, a Hub id or 'sample'.")],
    engine: Annotated[
        str, typer.Option(help="auto (vLLM if it is installed, else transformers), vllm or transformers.")
    ] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen at; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="HLWQ_API_KEY", show_envvar=True, help="Key that requests must bring."),
    ] = None,
    device: ModelDeviceOption = "auto",
    dtype: DtypeOption = "auto",
    kv_bits: KvBitsOption = None,
    gpu_memory: GpuMemoryOption = None,
    format: FormatOption = Format.auto,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Serve a checkpoint to programs that use the OpenAI API, until Ctrl-C."""
    sink = Sink(format, json, quiet)
    from ..runtime import check_loadable
    from ..runtime.serving import Server, choose_engine, run_transformers, run_vllm
    from ..ui import hide_library_bars, quiet_log

    server = Server(path, host, port, api_key, device, dtype, kv_bits, gpu_memory)
    check_loadable(path, device=device, dtype=dtype)
    chosen = choose_engine(engine, server)
    server.check()
    if not server.is_local and api_key is None:
        sink.note(f"Anybody who reaches {host} can use this model. Set HLWQ_API_KEY to ask for a key.")
    found = Endpoint(server.url, path, chosen)

    def show() -> None:
        sink.result("serve", found, lambda console: console.print(found.url), found.url)

    if chosen == "vllm":
        show()
        run_vllm(server)
    hide_library_bars(sink)
    try:
        with quiet_log(sink):
            run_transformers(server, show)
    except KeyboardInterrupt:  # there is nothing to continue
        sink.note("Stopped.")
        raise typer.Exit(INTERRUPTED) from None
