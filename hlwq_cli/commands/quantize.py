"""hlwq quantize: code a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.calibration_data import DEFAULT_TOKENS, OWN_TEXT, CalibrationRequest
from ..sizes import parse_fraction, parse_size
from ..startup import imports_without_gc, start_driver
from ..ui import Format, FormatOption, JsonOption, QuietOption, Sink, handle_errors

if TYPE_CHECKING:
    from ..checkpoint import Recipe, Source


OPTIONAL_VALUES = {"--calibrate": OWN_TEXT}
"""The value of an option that is given without one."""


@handle_errors
def quantize(
    model: Annotated[
        str, typer.Argument(help="Folder with a safetensors checkpoint, a Hub id OWNER/NAME, or 'sample'.")
    ],
    out: Annotated[
        Path | None, typer.Argument(help="Output folder; default is NAME-HLWQ-Q<bits> in the current folder.")
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits per code, 2 to 8.")] = 5,
    recipe: Annotated[
        str, typer.Option(help="default, head, classic, attention-plus-one, or a .yaml file.")
    ] = "default",
    effort: Annotated[
        str, typer.Option(help="default, or fast: no scale search, 4x faster, 1.3-1.5x the error.")
    ] = "default",
    tensor: Annotated[
        list[str], typer.Option(metavar="REGEX=BITS", help="Other bits, or 'keep', for tensors that match.")
    ] = [],  # noqa: B006
    include: Annotated[list[str], typer.Option(metavar="REGEX", help="Code only tensors that match.")] = [],  # noqa: B006
    exclude: Annotated[list[str], typer.Option(metavar="REGEX", help="Keep tensors that match as they are.")] = [],  # noqa: B006
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Hub id that a local folder came from, for the card.")
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="[DATA]",
            help="Code with error feedback on DATA: .txt, .jsonl, sample, DATASET[:CONFIG[:SPLIT]], or a kept "
            "calibration.safetensors; without DATA on the model's own text.",
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Code with error feedback on an importance matrix of llama.cpp."),
    ] = None,
    calibration_tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens that --calibrate uses, at most.")
    ] = DEFAULT_TOKENS,
    seed: Annotated[int, typer.Option(help="Seed of the model's own text and of a dataset's order.")] = 0,
    no_keep_calibration: Annotated[
        bool,
        typer.Option(
            "--no-keep-calibration",
            help="Do not keep the tokens in calibration.safetensors, which makes the same bytes again.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, from headers only; write nothing.")
    ] = False,
    max_unquantized: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Fail if more than this fraction of the bytes would stay uncoded, e.g. 10%."
        ),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Maximum size of an output file.")] = "2GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result of hlwq in OUT.")] = False,
    delete_source: Annotated[
        bool,
        typer.Option(
            "--delete-source", help="For a Hub id: delete each file after it is read; at most two are on disk."
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(help="Devices that code: auto, cpu, cuda, or several: cuda:0,cuda:1.")
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Threads that read, code and write; default is one per processor."),
    ] = None,
    format: FormatOption = Format.auto,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Code the linear layers and experts of a checkpoint, or what a recipe names; keep the rest bit for bit.

    Run the same command again to continue an interrupted run; the result has the same bytes.
    """
    sink = Sink(format, json, quiet)
    start_driver(device)
    with imports_without_gc():
        from ..checkpoint import load_recipe, recorded

    resolved = load_recipe(
        recipe, bits, effort=effort, tensor=tuple(tensor), include=tuple(include), exclude=tuple(exclude)
    )
    if calibrate is not None or imatrix is not None:  # refused before anything else, also in a dry run
        CalibrationRequest(calibrate, imatrix, calibration_tokens, seed)
    max_fraction = None if max_unquantized is None else parse_fraction(max_unquantized)
    shard_bytes = parse_size(max_shard_size)
    if dry_run:
        from ..checkpoint import check_origin, open_source
        from ..devices import find_devices

        find_devices(device)
        source = open_source(model, revision)
        check_origin(source, delete_source, base_model)
        _show_plan(sink, source, resolved, max_fraction, threads)
        return
    from ..api import quantize as run
    from ..ui import progress_display, show_quantized

    folder = out or Path(f"{Path(os.path.realpath(model)).name}-HLWQ-Q{bits}")
    with recorded() as trace, progress_display(sink) as progress:
        result = run(
            model,
            folder,
            resolved,
            calibrate=calibrate,
            imatrix=imatrix,
            calibration_tokens=calibration_tokens,
            seed=seed,
            keep_calibration=not no_keep_calibration,
            revision=revision,
            max_shard_bytes=shard_bytes,
            max_unquantized=max_fraction,
            overwrite=overwrite,
            base_model=base_model,
            device=device,
            threads=threads,
            delete_source=delete_source,
            progress=progress,
            trace=trace,
        )
    show_quantized(sink, result)


def _show_plan(sink: Sink, source: Source, recipe: Recipe, max_fraction: float | None, threads: int | None) -> None:
    from ..checkpoint import check_coded, check_unquantized, estimate, make_plan
    from ..ui import show_plan

    plan = make_plan(source, recipe)
    source.close()
    show_plan(sink, estimate(plan, threads))
    check_coded(plan)
    check_unquantized(plan, max_fraction)
