"""From what a user asks for to a calibration: read or sample the data, and add pictures for models that see."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...checkpoint import OWN_TEXT_ORIGIN
from ...checkpoint.run import Calibration
from ...devices import find_devices
from ...errors import HlwqError
from ...progress import ProgressCallback, ignore_progress
from ...samples import resolve_model
from ..calibration import StreamCalibration, token_inputs
from ..loading.classes import model_class
from ..loading.config import read_config, supports_images
from ..loading.context import context_for
from ..loading.processor import open_processor
from .given_text import WINDOW, TextRequest, read_text
from .imatrix import read_imatrix
from .imatrix_moments import ImatrixCalibration
from .own_model import OwnTextRequest, check_writes_text, write_own_text
from .pictures import picture_inputs, with_bundled_pictures
from .request import OWN_TEXT, CalibrationRequest
from .tokens import CALIBRATION_FILE, CalibrationTokens, load_tokens

logger = logging.getLogger("hlwq")


@dataclass(frozen=True)
class CalibratedModel:
    """The model to calibrate.

    Attributes:
        model: a folder or a Hub id.
        revision: of a Hub id.
        device: of `--device`; the first one runs the model.
        out: the output folder. A coded copy that writes own text lies beside it.
        reuse: whether own text that is kept there already is used again, as when a killed run is continued.
    """

    model: str
    revision: str | None
    device: str
    out: Path
    reuse: bool = True


def make_calibration(
    request: CalibrationRequest, target: CalibratedModel, progress: ProgressCallback = ignore_progress
) -> Calibration:
    """Read or sample what a request names.

    Raises:
        UsageError: the data is empty, too short, or for another tokenizer; or the model writes no text of its own.
        NotFoundError: there is no such data.
        HlwqError: the model cannot be loaded.
    """
    if request.imatrix is not None:
        return ImatrixCalibration(read_imatrix(request.imatrix), find_devices(target.device)[0])
    path = resolve_model(target.model)
    config = read_config(path, target.revision)
    opened = open_processor(path, target.revision)
    tokenizer = getattr(opened.processor, "tokenizer", opened.processor)
    tokens = _tokens(request, target, config, tokenizer)
    if tokens is None:
        tokens = _own_text(request, target, tokenizer, progress)
    taken = set(inspect.signature(model_class(config).forward).parameters)
    shown: list[dict[str, torch.Tensor]] = []
    if supports_images(config) and not opened.without_images:
        tokens = tokens if tokens.captions else with_bundled_pictures(tokens)
        shown = _pictures(tokens, opened.processor, taken)
    device = find_devices(target.device)[0].type
    text: Sequence[dict[str, torch.Tensor]] = token_inputs([tokens.ids], device, config.is_encoder_decoder)
    files = {CALIBRATION_FILE: tokens.dump()} if request.keep else {}
    return StreamCalibration([*text, *shown], target.device, _about(tokens, request.keep, len(shown) > 0), files)


def _tokens(
    request: CalibrationRequest, target: CalibratedModel, config: Any, tokenizer: Any
) -> CalibrationTokens | None:
    """Return given tokens; None if they are to be own text."""
    if request.data in (None, OWN_TEXT):
        check_writes_text(resolve_model(target.model), target.revision)
        return None
    data = str(request.data)
    if data.endswith(".safetensors"):
        return load_tokens(Path(data), tokenizer)
    context = context_for(config, WINDOW)
    tokens = context.tokens if context else None
    return read_text(TextRequest(data, request.tokens, request.seed, tokens), tokenizer)


def _own_text(
    request: CalibrationRequest, target: CalibratedModel, tokenizer: Any, progress: ProgressCallback
) -> CalibrationTokens:
    kept = target.out / CALIBRATION_FILE
    if target.reuse and kept.is_file():
        found = load_tokens(kept, tokenizer)
        if found.origin == OWN_TEXT_ORIGIN and found.seed == request.seed and 0 <= request.tokens - found.count < 256:
            return found
    scratch = next(p for p in (target.out.absolute(), *target.out.absolute().parents) if p.is_dir())
    own = OwnTextRequest(
        resolve_model(target.model), target.revision, target.device, request.tokens, request.seed, scratch
    )
    return write_own_text(own, progress)


def _pictures(tokens: CalibrationTokens, processor: Any, taken: set[str]) -> list[dict[str, torch.Tensor]]:
    try:
        return picture_inputs(tokens, processor, taken)
    except HlwqError as error:
        logger.warning("%s What sees is coded without calibration.", error.what)
        return []


def _about(tokens: CalibrationTokens, is_kept: bool, has_pictures: bool) -> dict[str, Any]:
    """Return what the manifest says of the data."""
    about: dict[str, Any] = {"origin": tokens.origin, "sha256": tokens.sha256, "tokenizer": tokens.tokenizer}
    if tokens.seed is not None:
        about["seed"] = tokens.seed
    if has_pictures:
        about["pictures"] = len(tokens.captions)
    if is_kept:
        about["file"] = CALIBRATION_FILE
    return about
