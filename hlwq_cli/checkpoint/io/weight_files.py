"""Which files of a checkpoint hold the model's weights, and what becomes of all other files of weights.

The model's weights are what transformers would load. Files of weights that it would not load are copied where they are
small modules that belong to the model. All others are named in a warning.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ...errors import CorruptError, UnsupportedError
from ...sizes import format_size
from .weight_map import INDEX, parse_weight_map

SINGLE = "model.safetensors"
MODULES = "modules.json"
"""The list of modules of sentence-transformers: each names the folder that holds it."""

WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data",
    ".onnx.data", ".tflite", ".pkl", ".pickle", ".ot", ".npz", ".mlmodel", ".safetensors.index.json",
    ".bin.index.json",
)  # fmt: skip

_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_COPIES = re.compile(r"consolidated.*|model([-.].*)?\.safetensors.*|diffusion_pytorch_model.*|pytorch_model.*")
"""Files in the root that hold the whole model once more: in another layout, another precision, or as stale shards."""
_COPY_FOLDERS = re.compile(
    r"original|onnx|openvino|gguf|mlx|coreml|checkpoint-\d+|global_step\d+"
    r"|(.*[-_.])?((fp|bf|float|bfloat|int)(4|8|16|32)|f16|f32|4bit|8bit)([-_.].*)?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[-.]\d+(-of-\d+)?(?=\.)")
_MAX_NAMED = 5
_CONVERT = "Convert it first; pickled weights (.bin, .pt) are never read."
_SAVE = "Save the model with save_pretrained of transformers."


@dataclass(frozen=True)
class WeightFiles:
    """The files that transformers would load.

    Attributes:
        names: sorted.
        weight_map: file of each tensor, by the index; None if there is no index.
        extra: those that the model's class loads in addition, which no index lists.
    """

    names: tuple[str, ...]
    weight_map: dict[str, str] | None
    extra: tuple[str, ...]


@dataclass(frozen=True)
class OtherWeights:
    """Files of weights that transformers would not load.

    Attributes:
        copied: files that come along byte for byte, sorted.
        warnings: one sentence for each kind of file that stays behind.
    """

    copied: tuple[str, ...]
    warnings: tuple[str, ...]


def find_weight_files(
    model: str, names: Collection[str], config: Mapping[str, Any], read: Callable[[str], dict[str, Any]]
) -> WeightFiles:
    """Find the files that transformers would load, in its order of preference.

    That is the file that `transformers_weights` in config.json names, else model.safetensors, else the shards of the
    index. Variants such as model.fp16.safetensors are loaded only on request, so they do not count.

    Args:
        model: for messages.
        names: all files of the checkpoint.
        config: its config.json.
        read: reads a JSON file of the checkpoint.

    Raises:
        UnsupportedError: transformers would load no safetensors file.
        CorruptError: a file that the index names is missing, or outside the folder.
    """
    entry = _entry(model, names, config)
    extra = tuple(_extra_files(config, names))
    if entry.endswith(".safetensors"):
        return WeightFiles(tuple(sorted({entry, *extra})), None, extra)
    weight_map = parse_weight_map(read(entry), entry, has_folders=True)
    shards = set(weight_map.values())
    missing = sorted(shards - set(names))
    if missing:
        raise CorruptError(f"{model} lacks {', '.join(missing)}, which its index names.", "Fetch them.")
    return WeightFiles(tuple(sorted(shards.union(extra))), weight_map, extra)


def _entry(model: str, names: Collection[str], config: Mapping[str, Any]) -> str:
    """Return the file that transformers would begin with: safetensors, or an index."""
    if any(_DISTRIBUTED.fullmatch(name) for name in names):
        raise UnsupportedError(f"{model} is a distributed checkpoint.", _SAVE)
    entry = config.get("transformers_weights")
    if isinstance(entry, str):
        if not entry.endswith((".safetensors", ".safetensors.index.json")):
            raise UnsupportedError(f"{model} has no safetensors weights.", _CONVERT)
        if entry not in names:
            raise CorruptError(f"{model} lacks {entry}, which its config.json names.", "Fetch it.")
        return entry
    found = next((name for name in (SINGLE, INDEX) if name in names), None)
    if found is not None:
        return found
    others = sorted(n for n in names if n.endswith(".safetensors"))
    if others:
        raise UnsupportedError(
            f"{model} holds {others[0]}, but no {SINGLE} and no {INDEX}, so transformers would not load it.", _SAVE
        )
    raise UnsupportedError(f"{model} has no safetensors weights.", _CONVERT)


def _extra_files(config: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Return the files that a model's class loads in addition to model.safetensors.

    transformers is only imported if there is a file that could be one.
    """
    candidates = [n for n in names if n.endswith(".safetensors") and "/" not in n and not _COPIES.fullmatch(n)]
    if not candidates:
        return []
    from transformers import CONFIG_MAPPING

    try:
        extra = CONFIG_MAPPING[config["model_type"]].extra_files
    except (KeyError, TypeError, AttributeError):  # an unknown type, or a version without such files
        return []
    return [name for name in extra if name in candidates]


def sort_other_weights(
    sizes: Mapping[str, int], loaded: Collection[str], loaded_bytes: int, modules: Collection[str]
) -> OtherWeights:
    """Decide what becomes of the files of weights that transformers would not load.

    A module of sentence-transformers and an adapter of PEFT belong to the model, and come along. So do the safetensors
    files of a folder that have less than half the bytes of the model's weights. All others, and all pickled files, stay
    behind.

    Args:
        sizes: bytes of all files of the checkpoint, by name.
        loaded: files that transformers would load.
        loaded_bytes: bytes of their tensors.
        modules: folders that hold modules of sentence-transformers.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(sizes) - set(loaded)):
        if name.endswith(WEIGHT_SUFFIXES):
            groups[_group(name)].append(name)
    copied: list[str] = []
    left: list[str] = []
    for group in groups.values():
        safe = [n for n in group if ".safetensors" in n]
        if safe and _belongs(safe, sum(sizes[n] for n in safe), sizes, loaded_bytes, modules):
            copied += safe
            left += [n for n in group if n not in safe]
        else:
            left += group
    left = [n for n in left if not n.endswith(".index.json")]
    pickled = [n for n in left if _folder(n) in modules and not any(_folder(c) == _folder(n) for c in copied)]
    warnings = [
        _sentence("Left out, as transformers does not load them", [n for n in left if n not in pickled], sizes),
        _sentence("Left out, although modules.json lists them, as pickled weights are never copied", pickled, sizes),
    ]
    return OtherWeights(tuple(sorted(copied)), tuple(w for w in warnings if w))


def module_folders(document: Any) -> set[str]:
    """Return the folders that the content of modules.json names."""
    entries = document if isinstance(document, list) else []
    paths = {entry.get("path") for entry in entries if isinstance(entry, dict)}
    return {path.strip("/") for path in paths if isinstance(path, str) and path.strip("/")}


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _group(name: str) -> str:
    """Return what files share that are copied or left together: a folder, or in the root a name without number."""
    return _folder(name) or _NUMBER.sub("", name).partition(".")[0]


def _belongs(
    group: list[str], size: int, sizes: Mapping[str, int], loaded_bytes: int, modules: Collection[str]
) -> bool:
    """Whether safetensors files are a module of the model, and not the model once more."""
    folder, first = _folder(group[0]), group[0].rpartition("/")[2]
    if folder in modules:
        return True
    if first.startswith("adapter_model") and _join(folder, "adapter_config.json") in sizes:
        return True
    if not folder and _COPIES.fullmatch(first):
        return False
    if first.startswith("consolidated") or any(_COPY_FOLDERS.fullmatch(part) for part in PurePosixPath(folder).parts):
        return False
    return 2 * size < loaded_bytes


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _sentence(what: str, names: Iterable[str], sizes: Mapping[str, int]) -> str:
    """Name files with their sizes, the largest first; a folder's files and numbered files together."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[name.partition("/")[0] + "/" if "/" in name else _group(name)].append(name)
    if not groups:
        return ""
    total = {label: sum(sizes[n] for n in group) for label, group in groups.items()}
    labels = sorted(groups, key=lambda label: -total[label])
    named = [_label(label, groups[label], total[label]) for label in labels[:_MAX_NAMED]]
    rest = labels[_MAX_NAMED:]
    if rest:
        count = sum(len(groups[label]) for label in rest)
        named.append(f"{count} more ({format_size(sum(total[label] for label in rest))})")
    return f"{what}: {', '.join(named)}."


def _label(label: str, group: list[str], size: int) -> str:
    if len(group) == 1:
        return f"{group[0]} ({format_size(size)})"
    if label.endswith("/"):
        return f"{label} ({len(group)} files, {format_size(size)})"
    return f"{group[0]} and {len(group) - 1} like it ({format_size(size)})"
