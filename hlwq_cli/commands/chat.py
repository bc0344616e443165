"""hlwq chat: talk to a checkpoint in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from ..ui import (
    DtypeOption,
    ExecutionOption,
    Format,
    GpuMemoryOption,
    KvBitsOption,
    MaxNewTokensOption,
    ModelDeviceOption,
    QuietOption,
    SeedOption,
    Sink,
    SystemOption,
    TemperatureOption,
    as_execution,
    handle_errors,
)


@handle_errors
def chat(
    path: Annotated[str, typer.Argument(help="Checkpoint, coded or plain: a folder, a Hub id or 'sample'.")],
    system: SystemOption = None,
    max_new_tokens: MaxNewTokensOption = 1024,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = None,
    device: ModelDeviceOption = "auto",
    dtype: DtypeOption = "auto",
    execution: ExecutionOption = "auto",
    kv_bits: KvBitsOption = None,
    gpu_memory: GpuMemoryOption = None,
    quiet: QuietOption = False,
) -> None:
    """Talk to a checkpoint in the terminal; /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends."""
    sink = Sink(Format.auto, quiet_flag=quiet)
    how = as_execution(execution)
    from ..ui import TerminalChat, open_model

    model = open_model(
        sink, path, device=device, dtype=dtype, execution=how, kv_cache_nbits=kv_bits, gpu_memory=gpu_memory
    )
    options = {"system": system, "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    TerminalChat(sink, model, options).run()
