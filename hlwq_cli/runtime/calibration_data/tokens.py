"""The tokens and pictures that a model is calibrated on, and the file that keeps them: calibration.safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ...errors import CorruptError, NotFoundError, UsageError

CALIBRATION_FILE = "calibration.safetensors"
"""Name of the file in a result that keeps the calibration tokens."""
MIN_TOKENS = 2048
"""Fewer tokens than this calibrate worse than none: a layer has hundreds to thousands of inputs."""
_KEY = "hlwq-calibration-1"
_NO_PICTURES = torch.empty(0, 1, 1, 3, dtype=torch.uint8)


@dataclass(frozen=True)
class CalibrationTokens:
    """What a model is calibrated on.

    Attributes:
        ids: int64 (sequences, length), token ids.
        origin: where they come from, for people: `own text`, or the name of a file or dataset.
        tokenizer: identifies the tokenizer, see `tokenizer_digest`.
        seed: of the sampling; None for a given text.
        pictures: uint8 (pictures, height, width, 3), shown to models that see; may have no picture.
        captions: what each picture shows.
        question: what a user asks about each picture.
    """

    ids: torch.Tensor
    origin: str
    tokenizer: str
    seed: int | None = None
    pictures: torch.Tensor = _NO_PICTURES
    captions: tuple[str, ...] = ()
    question: str = ""

    @property
    def count(self) -> int:
        """Number of tokens of text."""
        return self.ids.numel()

    @property
    def sha256(self) -> str:
        """Hash of everything that the model sees: ids, pictures, captions and the question."""
        digest = hashlib.sha256(json.dumps([list(self.ids.shape), list(self.pictures.shape)]).encode())
        digest.update(self.ids.to(torch.int64).numpy().tobytes())
        digest.update(self.pictures.numpy().tobytes())
        digest.update(json.dumps([self.question, *self.captions]).encode())
        return digest.hexdigest()

    def dump(self) -> bytes:
        """Return the bytes of calibration.safetensors; the same tokens give the same bytes."""
        tensors = {"input_ids": self.ids.to(torch.int32)}
        if self.captions:
            tensors["pictures"] = self.pictures
        about = {name: getattr(self, name) for name in ("origin", "tokenizer", "seed", "question", "captions")}
        return save(tensors, {_KEY: json.dumps(about)})  # one entry, as safetensors writes several in any order


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the sha256 of a tokenizer's vocabulary, which tells whether token ids mean the same."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    return hashlib.sha256(json.dumps(vocabulary, ensure_ascii=False).encode()).hexdigest()


def load_tokens(path: Path, tokenizer: Any) -> CalibrationTokens:
    """Read a calibration.safetensors.

    Args:
        path: the file.
        tokenizer: of the model to calibrate.

    Raises:
        NotFoundError: there is no such file.
        UsageError: the file holds other tensors, or ids of another tokenizer.
        CorruptError: the file is damaged.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.", "Give a calibration.safetensors of an earlier result.")
    try:
        with safe_open(path, "pt") as opened:
            written = (opened.metadata() or {}).get(_KEY)
            if written is None:
                raise UsageError(
                    f"{path} does not hold calibration tokens.", "Give a calibration.safetensors of an earlier result."
                )
            names = set(opened.keys())
            tensors = {name: opened.get_tensor(name) for name in names & {"input_ids", "pictures"}}
        found = _tokens(json.loads(written), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} is damaged: {error}.", "Make or fetch it again.") from error
    if found.tokenizer != tokenizer_digest(tokenizer):
        raise UsageError(
            f"The tokens of {path} were made by another tokenizer than this model's.",
            "Give the file of a result of the same model, or a text.",
        )
    return found


def kept_ids(path: Path) -> torch.Tensor:
    """Return only the token ids of a calibration.safetensors, int64 (sequences, length).

    Raises:
        SafetensorError: the file is damaged.
    """
    with safe_open(path, "pt") as opened:
        ids: torch.Tensor = opened.get_tensor("input_ids").long()
    return ids


def _tokens(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> CalibrationTokens:
    """Return the content of a file.

    Raises:
        ValueError: a shape or dtype is not valid.
        KeyError: a part is missing.
    """
    ids = tensors["input_ids"]
    if ids.ndim != 2 or ids.dtype != torch.int32 or not ids.numel() or int(ids.min()) < 0:
        raise ValueError("input_ids is not a matrix of token ids")
    captions = tuple(str(caption) for caption in about["captions"])
    pictures = tensors.get("pictures", _NO_PICTURES)
    if pictures.ndim != 4 or pictures.dtype != torch.uint8 or len(pictures) != len(captions):
        raise ValueError("pictures are not one picture for each caption")
    return CalibrationTokens(
        ids.long(),
        str(about["origin"]),
        str(about["tokenizer"]),
        about["seed"],
        pictures,
        captions,
        str(about["question"]),
    )
