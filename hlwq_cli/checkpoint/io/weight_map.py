"""Which file of a checkpoint holds which tensor: its index, held against the files' headers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CorruptError, NotFoundError, UnsupportedError
from .safetensors_file import TensorInfo

INDEX = "model.safetensors.index.json"


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise NotFoundError(
            f"There is no {name} in {path.parent}.", "Give the folder that holds a checkpoint's config and weights."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{name} is not valid JSON: {error}.", "Fetch it again.") from error
    if not isinstance(document, dict):
        raise CorruptError(f"{name} is not a JSON object.", "Fetch it again.")
    return document


def read_weight_map(path: Path) -> dict[str, str]:
    """Which file holds which tensor, by an index; names that leave the folder are an error."""
    weight_map = read_json(path, INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CorruptError(f"{INDEX} has no weight_map.", "Fetch it again.")
    for name, file in weight_map.items():
        if not isinstance(file, str) or file != os.path.basename(file) or file in ("", ".", ".."):
            raise CorruptError(
                f"{INDEX} places {name} in {file!r}, outside the folder.", "Do not trust this checkpoint."
            )
    return weight_map


def weight_files(names: list[str], weight_map: Mapping[str, str] | None, model: str) -> list[str]:
    """The files that hold weights: those the index names, or all of `names` where there is none."""
    if weight_map is not None:
        missing = sorted(set(weight_map.values()) - set(names))
        if missing:
            raise CorruptError(f"{model} lacks {', '.join(missing)}, which its index names.", "Fetch them.")
        return sorted(set(weight_map.values()))
    if not names:
        raise UnsupportedError(
            f"{model} has no safetensors weights.", "Convert it first; pickled weights (.bin, .pt) are never read."
        )
    return names


def collect_tensors(
    headers: dict[str, dict[str, TensorInfo]], weight_map: Mapping[str, str] | None
) -> dict[str, TensorInfo]:
    """All tensors of several files, in order; a tensor listed twice, or an index that disagrees, is an error."""
    tensors: dict[str, TensorInfo] = {}
    for header in headers.values():
        for name, info in sorted(header.items(), key=lambda item: item[1].offset):
            if name in tensors:
                raise CorruptError(f"{name} is in both {tensors[name].file} and {info.file}.", "Remove one of them.")
            tensors[name] = info
    if weight_map is not None:
        wrong = sorted(n for n, f in weight_map.items() if n not in tensors or tensors[n].file != f)
        extra = sorted(set(tensors) - set(weight_map))
        if wrong or extra:
            raise CorruptError(
                f"Index and files disagree: {', '.join((wrong + extra)[:5])} ({len(wrong + extra)} tensors).",
                "Fetch the checkpoint again.",
            )
    return tensors
