"""hlwq generate: answer one prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..ui import (
    DtypeOption,
    ExecutionOption,
    Format,
    FormatOption,
    GpuMemoryOption,
    JsonOption,
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
def generate(
    path: Annotated[str, typer.Argument(help="Checkpoint, coded or plain: a folder, a Hub id or 'sample'.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt; - reads it from stdin.")],
    image: Annotated[
        list[Path] | None, typer.Option("--image", metavar="FILE", help="Picture of the prompt; can be repeated.")
    ] = None,
    system: SystemOption = None,
    max_new_tokens: MaxNewTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = None,
    device: ModelDeviceOption = "auto",
    dtype: DtypeOption = "auto",
    execution: ExecutionOption = "auto",
    kv_bits: KvBitsOption = None,
    gpu_memory: GpuMemoryOption = None,
    format: FormatOption = Format.auto,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Answer a prompt on stdout, piece by piece. A chat model gets it as a user's message."""
    sink = Sink(format, json, quiet)
    how = as_execution(execution)
    from ..ui import checked_prompt, open_image, open_model, show_answer

    text = checked_prompt(_from_stdin() if prompt == "-" else prompt)
    images = [open_image(file) for file in image or ()]
    model = open_model(
        sink, path, device=device, dtype=dtype, execution=how, kv_cache_nbits=kv_bits, gpu_memory=gpu_memory
    )
    stream = model.stream(
        text,
        images or None,
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    try:
        show_answer(sink, stream)
    finally:
        stream.close()


def _from_stdin() -> str:
    """Return what stdin holds, without the line feed at its end; bytes that are not UTF-8 become surrogates."""
    return sys.stdin.buffer.read().decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r")
