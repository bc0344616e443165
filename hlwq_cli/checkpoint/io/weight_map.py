"""Read which file of a checkpoint holds which tensor, from its index, and check it against the files' headers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ...errors import CorruptError
from .local_files import is_inside, read_json
from .safetensors_file import TensorInfo

INDEX = "model.safetensors.index.json"


def read_weight_map(path: Path) -> dict[str, str]:
    """Which file holds which tensor, by the index of a coded checkpoint; names that leave the folder are an error."""
    return parse_weight_map(read_json(path, INDEX), INDEX)


def parse_weight_map(document: Mapping[str, Any], index: str, has_folders: bool = False) -> dict[str, str]:
    """Return which file holds which tensor, by the content of an index.

    Args:
        document: the content.
        index: name of the index, for messages.
        has_folders: whether files may be in sub-folders.

    Raises:
        CorruptError: there is no weight map, or it names a file outside the folder.
    """
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict):
        raise CorruptError(f"{index} has no weight_map.", "Fetch it again.")
    for name, file in weight_map.items():
        if not is_inside(file) or not (has_folders or "/" not in file):
            raise CorruptError(
                f"{index} places {name} in {file!r}, outside the folder.", "Do not trust this checkpoint."
            )
    return weight_map


def collect_tensors(
    headers: Mapping[str, Mapping[str, TensorInfo]],
    weight_map: Mapping[str, str] | None,
    unlisted: Collection[str] = (),
    may_lack: Callable[[str], bool] = lambda _: False,
) -> dict[str, TensorInfo]:
    """Collect the tensors of several files, in order.

    Args:
        headers: tensors by name, of each file.
        weight_map: file of each tensor, by the index; None if there is no index.
        unlisted: files that the index need not list.
        may_lack: whether the index may list a tensor that no file holds.

    Raises:
        CorruptError: two files hold a tensor, or the index and the files disagree.
    """
    tensors: dict[str, TensorInfo] = {}
    for header in headers.values():
        for name, info in sorted(header.items(), key=lambda item: item[1].offset):
            if name in tensors:
                raise CorruptError(f"{name} is in both {tensors[name].file} and {info.file}.", "Remove one of them.")
            tensors[name] = info
    if weight_map is not None:
        wrong = sorted(n for n, f in weight_map.items() if n in tensors and tensors[n].file != f)
        wrong += sorted(n for n in weight_map if n not in tensors and not may_lack(n))
        wrong += sorted(n for n, t in tensors.items() if n not in weight_map and t.file not in unlisted)
        if wrong:
            raise CorruptError(
                f"Index and files disagree: {', '.join(wrong[:5])} ({len(wrong)} tensors).",
                "Fetch the checkpoint again.",
            )
    return tensors
