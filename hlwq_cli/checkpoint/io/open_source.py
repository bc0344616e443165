"""Open a source: find its weights, config and sidecar files, and refuse checkpoints that are quantized already."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import CorruptError, NotFoundError, UnsupportedError, UsageError
from ...printable import CONTROL
from ...samples import resolve_model
from .hub_repo import HubRepo, is_repo_id
from .local_files import check_inside, list_files, read_json, read_text
from .model_config import check_config, model_config
from .safetensors_file import TensorInfo, read_header
from .source import Source
from .weight_files import MODULES, WEIGHT_SUFFIXES, find_weight_files, module_folders, sort_other_weights
from .weight_map import collect_tensors

_MADE_HERE = ("hlwq_manifest.json", ".hlwq_run.jsonl")
_TIED_NAMES = re.compile(
    r"(^|\.)(lm_head|lm_head\.decoder|predictions\.decoder|decoder|embed_out|output_projection|proj_out"
    r"|embed_tokens|shared|wte|word_embeddings)\.(weight|bias)$"
)
"""Heads and embeddings: the tensors that transformers ties by `tie_word_embeddings`."""


def open_source(model: str, revision: str | None = None) -> Source:
    """Open a folder or a Hub repository.

    Args:
        model: a path, `owner/name` on the Hub, or `sample`, the bundled model.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        NotFoundError: there is no such folder or repository.
        CorruptError: the files contradict each other.
        UnsupportedError: the checkpoint is quantized already, or has no safetensors weights.
    """
    model = resolve_model(model)
    path = Path(model).expanduser()
    if os.path.isdir(path):  # false where the name is too long; Path.is_dir would raise
        if revision is not None:
            raise UsageError(f"--revision needs a Hub id, and {model} is a folder.")
        source = _open_folder(model, path)
    elif is_repo_id(model) and not os.path.lexists(path):
        source = _open_repo(model, revision)
    else:
        raise NotFoundError(f"There is no folder {model}.", "Give a folder with a checkpoint, or a Hub id owner/name.")
    refuse_quantized(source)
    if not source.tensors:
        raise UnsupportedError(f"{model} holds no tensors.", "Give a folder with a checkpoint, or a Hub id owner/name.")
    return source


def _open_folder(model: str, root: Path) -> Source:
    check_inside(root, "config.json")
    config = read_json(root / "config.json", "config.json")
    sizes = {name: status.st_size for name, status in list_files(root).items()}
    made = {str(Path(name).parent) for name in sizes if Path(name).name in _MADE_HERE} - {"."}
    sizes = {name: size for name, size in sizes.items() if not made.intersection(map(str, Path(name).parents))}
    source = Source(model, None, config, {}, (), root)

    def header(file: str) -> dict[str, TensorInfo]:
        return read_header(source.path(file), file)[0]

    _assemble(source, sizes, header)
    for name in source.sidecar_files:
        check_inside(root, name)
    return source


def _open_repo(model: str, revision: str | None) -> Source:
    repo = HubRepo.find(model, revision)
    config = read_json(repo.fetch("config.json"), "config.json") if "config.json" in repo.files else {}
    return _assemble(Source(model, repo.commit, config, {}, (), repo.root, repo), repo.sizes, repo.header)


def _assemble(source: Source, sizes: Mapping[str, int], header: Callable[[str], dict[str, TensorInfo]]) -> Source:
    """Fill in a source's tensors and sidecar files, and return it.

    Args:
        source: a source without tensors and sidecar files.
        sizes: sizes of all its files in bytes, by name.
        header: reads the tensors of a safetensors file.
    """

    def read(file: str) -> dict[str, Any]:
        return read_json(source.path(file), file)

    check_config(source.config, source.id)
    files = find_weight_files(source.id, sizes, source.config, read)
    headers = {f: header(f) for f in files.names}
    source.tensors = collect_tensors(headers, files.weight_map, files.extra, lambda n: _may_be_tied(source.config, n))
    modules = _module_folders(source.path(MODULES)) if MODULES in sizes else set()
    loaded_bytes = sum(t.nbytes for t in source.tensors.values())
    others = sort_other_weights(sizes, files.names, loaded_bytes, modules)
    copied = set(others.copied)
    wanted = [n for n in sizes if n in copied or (not n.endswith(WEIGHT_SUFFIXES) and not _is_hidden(n))]
    odd = [n for n in wanted if CONTROL.search(n)]
    source.sidecar_files = tuple(n for n in wanted if n not in odd)
    source.sidecar_bytes = sum(sizes[n] for n in copied.difference(odd))
    source.warnings = (*others.warnings, *_odd_names(odd))
    return source


def _odd_names(names: Sequence[str]) -> list[str]:
    """Return a warning about files whose names no manifest can hold: not UTF-8, or with control characters."""
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"Left out, as their names are not UTF-8 or have control characters: {names[0]!a}{more}."]


def _module_folders(path: Path) -> set[str]:
    try:
        return module_folders(json.loads(read_text(path)))
    except (ValueError, RecursionError, CorruptError):  # transformers does not read it, so it need not be valid
        return set()


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in Path(name).parts)


def _may_be_tied(config: Mapping[str, Any], name: str) -> bool:
    """Return whether a tensor that the index lists but no file holds may be tied to a weight that a file holds."""
    return _TIED_NAMES.search(name) is not None and _ties_weights(config)


def _ties_weights(config: Mapping[str, Any]) -> bool:
    """Return whether a config ties the head to the embeddings. If it does not say, its transformers class decides."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if "tie_word_embeddings" in part:
            return bool(part["tie_word_embeddings"])
    try:
        return bool(model_config(config).get_text_config().tie_word_embeddings)
    except Exception:  # an unknown type, or a config that its class does not accept
        return False


def refuse_quantized(source: Source) -> None:
    """Raise UnsupportedError if the source is quantized already."""
    config = source.config.get("quantization_config") or source.config.get("compression_config")
    if config:
        method = str(config.get("quant_method", "unknown") if isinstance(config, dict) else config)
        raise UnsupportedError(
            f"{source.id} is quantized already ({method}).", "Give the unquantized checkpoint it was made from."
        )
    for info in source.tensors.values():
        if info.dtype.startswith(("F8", "F4")) or info.name.endswith(
            (".qweight", ".codes", ".qzeros", ".weight_packed")
        ):
            raise UnsupportedError(
                f"{source.id} holds quantized weights ({info.name} is {info.dtype}).",
                "Give the unquantized checkpoint it was made from.",
            )
