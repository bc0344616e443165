"""A text that the user gives for calibration, as windows of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ...errors import NotFoundError, UnsupportedError, UsageError
from ...hub_dataset import open_dataset
from ...samples import SAMPLE, calibration_file
from ..loading.processor import bos_token
from .tokens import MIN_TOKENS, CalibrationTokens, tokenizer_digest

WINDOW = 512
"""Tokens of a window, if the model's context is not shorter."""
_SHUFFLED_ROWS = 1000
"""Rows of a dataset that are shuffled at a time: they are fetched while they are read."""
_INSTEAD = "Give a .txt, .jsonl or .safetensors file, `sample`, or DATASET[:CONFIG[:SPLIT]] of the Hub."


@dataclass(frozen=True)
class TextRequest:
    """Which text, and how much of it.

    Attributes:
        data: a .txt or .jsonl file, `sample`, or `DATASET[:CONFIG[:SPLIT]]`.
        tokens: how many tokens to take at most.
        seed: of the order of a dataset's rows.
        context: tokens that the model can read at once, or None.
    """

    data: str
    tokens: int
    seed: int
    context: int | None = None


def read_text(request: TextRequest, tokenizer: Any) -> CalibrationTokens:
    """Read a text and cut it into windows, evenly spread over it.

    Each window begins with BOS if the tokenizer adds BOS to a text.

    Raises:
        NotFoundError: there is no such file or dataset.
        UsageError: the text is empty or too short, a line of a .jsonl file is not valid, or messages have no chat
            template.
    """
    window = min(WINDOW, request.context or WINDOW)
    bos = bos_token(tokenizer)
    size = window - (bos is not None)
    ids = _token_ids(request, tokenizer)
    needed = min(MIN_TOKENS, request.tokens)
    if not ids:
        raise UsageError(f"The calibration data {request.data} is empty.", _INSTEAD)
    if len(ids) < needed or len(ids) < size:
        raise UsageError(
            f"{request.data} has {len(ids):,} tokens, and calibration needs at least {max(needed, size):,}.",
            "Give a longer text, or --calibrate without data, which uses the model's own text.",
        )
    rows = _spread(torch.tensor(ids, dtype=torch.int64), size, max(1, request.tokens // window))
    if bos is not None:
        rows = torch.cat([torch.full((len(rows), 1), bos), rows], dim=1)
    return CalibrationTokens(rows, Path(request.data).name, tokenizer_digest(tokenizer))


def _spread(ids: torch.Tensor, size: int, limit: int) -> torch.Tensor:
    """Return at most `limit` windows (windows, size) that do not overlap, evenly spread."""
    available = len(ids) // size
    count = min(limit, available)
    starts = [i * available // count * size for i in range(count)]
    return torch.stack([ids[start : start + size] for start in starts])


def _token_ids(request: TextRequest, tokenizer: Any) -> list[int]:
    path = Path(request.data)
    if request.data == SAMPLE:
        return _of_texts([calibration_file("addresses.txt").read_text(encoding="utf-8")], tokenizer)
    if path.is_file():
        if path.suffix == ".jsonl":
            return _of_rows(_json_lines(path), str(path), tokenizer)
        return _of_texts([path.read_text(encoding="utf-8", errors="replace")], tokenizer)
    if path.exists() or path.suffix in (".txt", ".jsonl"):
        raise NotFoundError(f"There is no file {path}.", _INSTEAD)
    return _of_dataset(request, tokenizer)


def _of_dataset(request: TextRequest, tokenizer: Any) -> list[int]:
    """Return ids of shuffled rows, about as many as are wanted; no more rows are fetched."""
    rows = open_dataset(request.data, "train", f"{_INSTEAD} Put OUT before --calibrate.", streaming=True)
    shuffled = iter(rows.shuffle(seed=request.seed, buffer_size=_SHUFFLED_ROWS))
    ids: list[int] = []
    while len(ids) < request.tokens and (some := list(islice(shuffled, 64))):
        ids += _of_rows(some, request.data, tokenizer)
    return ids


def _json_lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UsageError(f"Line {number} of {path} is not valid JSON.", "Write one object a line.") from error


def _of_rows(rows: Iterable[Any], name: str, tokenizer: Any) -> list[int]:
    """Return ids of rows with `text` or `messages`, in their order."""
    texts: list[str] = []
    ids: list[int] = []
    for number, row in enumerate(rows, 1):
        content = row if isinstance(row, dict) else {}
        if isinstance(content.get("text"), str):
            texts.append(content["text"])
        elif isinstance(content.get("messages"), list):
            chat = _chat(content["messages"], f"Row {number} of {name}", tokenizer)
            ids += tokenizer(chat, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            raise UsageError(f"Row {number} of {name} has neither `text` nor `messages`.", "Give one of them.")
    return _of_texts(texts, tokenizer) + ids


def _chat(messages: list[Any], where: str, tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(f"{where} has messages, and this model has no chat template.", "Give rows with `text`.")
    try:
        written: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # a template is a program, and may fail in any way
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UnsupportedError(f"The chat template refuses the messages of {where.lower()}: {said}.") from error
    return written


def _of_texts(texts: list[str], tokenizer: Any) -> list[int]:
    text = "\n\n".join(texts)
    if not text.strip():
        return []
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
