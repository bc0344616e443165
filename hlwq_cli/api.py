"""What `hlwq quantize` does, as one call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .checkpoint import QuantizeResult, Recipe, check_calibration, load_recipe
from .checkpoint import quantize as run
from .errors import UsageError
from .progress import ProgressCallback, ignore_progress
from .runtime.calibration_data import DEFAULT_TOKENS, CalibrationRequest


def quantize(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe | str = "default",
    *,
    bits: int | None = None,
    calibrate: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    calibration_tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    keep_calibration: bool = True,
    revision: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: ProgressCallback = ignore_progress,
    **options: Any,
) -> QuantizeResult:
    """Quantize a checkpoint, calibrated or not. A killed run is continued by the same call.

    Args:
        model: a folder, a Hub id, or `sample`.
        out: the folder to write.
        recipe: which tensors are coded, and how: a name in configs/recipes, a path to a file, or the result of
            `load_recipe`.
        bits: the default width, 2 to 8, for a recipe that is named; 5 if it is left out.
        calibrate: `own`, the model's own text; a .txt or .jsonl file; `sample`; `DATASET[:CONFIG[:SPLIT]]` of the Hub;
            or a .safetensors file of kept tokens.
        imatrix: an importance matrix of llama.cpp instead.
        calibration_tokens: how many tokens to use, at most.
        seed: of own text, and of the order of a dataset's rows.
        keep_calibration: whether the result gets calibration.safetensors.
        revision: branch, tag or commit of a Hub id.
        device: where to encode, and to run the model for calibration: `auto`, `cpu`, `cuda`, or `cuda:0,cuda:1`.
        overwrite: replace an earlier result or unfinished run of hlwq in `out`.
        progress: called after each slice and shard.
        **options: the other ones of `hlwq_cli.checkpoint.quantize`.

    Raises:
        UsageError: a width beside a recipe that has one; options that do not go together.
        HlwqError: see hlwq_cli/errors.py. The earlier content of `out` is then still there.
    """
    if isinstance(recipe, Recipe) and bits is not None:
        raise UsageError("bits= cannot be used with a Recipe, which has its own.", "Give it to load_recipe.")
    if isinstance(recipe, str):
        recipe = load_recipe(recipe) if bits is None else load_recipe(recipe, bits)
    calibration = None
    if calibrate is not None or imatrix is not None:
        data = None if calibrate is None else os.fspath(calibrate)
        file = None if imatrix is None else Path(imatrix)
        request = CalibrationRequest(data, file, calibration_tokens, seed, keep_calibration)
        check_calibration(recipe, bool(options.get("delete_source")))
        from .runtime.calibration_data import CalibratedModel, make_calibration  # they import transformers

        target = CalibratedModel(os.fspath(model), revision, device, Path(out), reuse=not overwrite)
        calibration = make_calibration(request, target, progress)
    return run(
        os.fspath(model),
        out,
        recipe,
        revision=revision,
        overwrite=overwrite,
        device=device,
        progress=progress,
        calibration=calibration,
        **options,
    )
