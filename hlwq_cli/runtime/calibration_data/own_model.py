"""The model that writes its own text: the original where it fits, else a data-free coded copy of it."""

from __future__ import annotations

import gc
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ...checkpoint import load_recipe, open_source, quantize
from ...devices import find_devices
from ...errors import HlwqError, UsageError
from ...progress import ProgressCallback, ignore_progress
from ..loading.classes import model_class
from ..loading.config import read_config
from ..model import HLWQModel
from ..offload.memory import host_memory_free
from .own_text import PIECE, Pieces, is_memory_error, sample_text
from .tokens import CalibrationTokens

logger = logging.getLogger("hlwq")

COPY_BITS = 5
"""Width of the coded copy: its text is close to the original's."""
_WEIGHTS_SHARE = 0.75
"""Fraction of the free memory that weights may take; the rest is for keys, values and activations."""


@dataclass(frozen=True)
class OwnTextRequest:
    """A model, and how much text it is to write.

    Attributes:
        model: a folder or a Hub id.
        revision: of a Hub id.
        device: name of the device.
        tokens: number of tokens.
        seed: of the sampling.
        scratch: folder on a disk with room for a coded copy of the model.
    """

    model: str
    revision: str | None
    device: str
    tokens: int
    seed: int
    scratch: Path


@dataclass(frozen=True)
class _Way:
    """A way to run the model.

    Attributes:
        device: name of the device.
        dtype: of weights and activations.
        is_coded: whether a coded copy runs, instead of the original.
        gpu_memory: limit in bytes if experts are kept in host memory, else None.
    """

    device: str
    dtype: str
    is_coded: bool = False
    gpu_memory: int | None = None


def write_own_text(request: OwnTextRequest, progress: ProgressCallback = ignore_progress) -> CalibrationTokens:
    """Let a model write text. It does not fail for the model's size: each way to run it needs less memory.

    Raises:
        UsageError: the model writes no text by itself.
        HlwqError: the model cannot be loaded.
    """
    check_writes_text(request.model, request.revision)
    source = open_source(request.model, request.revision)
    weights = sum(info.nbytes for info in source.tensors.values())
    source.close()
    with _CodedCopy(request) as copy:
        for way in ways(request.device, weights):
            try:
                return _write(request, way, copy, progress)
            except (MemoryError, RuntimeError, UsageError) as error:
                if not (isinstance(error, UsageError) or is_memory_error(error)):
                    raise
                logger.warning("Own text: there is too little memory on %s; trying with less.", way.device)
            _release()
    raise HlwqError("There is not enough memory for the model's own text.", "Give a text: --calibrate FILE.txt.")


def check_writes_text(model: str, revision: str | None) -> None:
    """Raise UsageError if a model cannot write a text of its own: an encoder, a classifier, an encoder-decoder."""
    config = read_config(model, revision)
    found = model_class(config)
    if not found.can_generate() or config.is_encoder_decoder:
        raise UsageError(
            f"{model} ({found.__name__}) does not write text by itself.", "Give a text: --calibrate FILE.txt."
        )


def ways(device: str, weights: int) -> Iterator[_Way]:
    """Yield ways to run a model with this many bytes of weights, the fastest first, and the last with the least memory.

    Args:
        device: name of the device, or of several, of which the first is used.
        weights: bytes of the original's weights, in 2 bytes each.
    """
    first = find_devices(device)[0]
    if first.type == "cuda":
        name, free = f"cuda:{first.index}", _free_bytes(first)
        if weights < free * _WEIGHTS_SHARE:
            yield _Way(name, "auto")
        yield _Way(name, "auto", is_coded=True)
        yield _Way(name, "auto", is_coded=True, gpu_memory=int(free * _WEIGHTS_SHARE))
    free = host_memory_free()
    if 2 * weights < free * _WEIGHTS_SHARE:  # float32 is faster there than bfloat16
        yield _Way("cpu", "float32")
    elif weights < free * _WEIGHTS_SHARE:
        yield _Way("cpu", "auto")
    yield _Way("cpu", "auto", is_coded=True)


def _write(request: OwnTextRequest, way: _Way, copy: _CodedCopy, progress: ProgressCallback) -> CalibrationTokens:
    path, revision = (copy.folder(), None) if way.is_coded else (request.model, request.revision)
    model = HLWQModel.from_pretrained(
        path,
        revision=revision,
        device=way.device,
        dtype=way.dtype,
        execution="coded" if way.is_coded else "auto",
        gpu_memory=way.gpu_memory,
    )
    length = PIECE if model.max_context is None else min(PIECE, model.max_context)
    pieces = Pieces(max(1, request.tokens // length), length, request.seed)
    return sample_text(model, pieces, _free_bytes(model.model.device) // 2, progress)


class _CodedCopy:
    """A data-free coded copy of a model in a temporary folder, which is made when it is first asked for."""

    def __init__(self, request: OwnTextRequest) -> None:
        self._request = request
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> _CodedCopy:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def folder(self) -> str:
        """Return the folder of the copy."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix=".hlwq-own-text-", dir=self._request.scratch)
            recipe = load_recipe("default", COPY_BITS, effort="fast")
            r = self._request
            quantize(r.model, self._folder.name, recipe, revision=r.revision, device=r.device)
        return self._folder.name


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_memory_free()


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
