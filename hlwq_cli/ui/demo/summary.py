"""A short summary of a checkpoint, from its headers and small files."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...checkpoint import open_coded, open_source
from ...checkpoint.format import CHART, RESULTS
from ...checkpoint.io import is_repo_id
from ...errors import NotFoundError
from ...runtime.kv import kv_bits_of
from ...runtime.offload import expert_cache_of
from ...sizes import format_size

if TYPE_CHECKING:
    from ...checkpoint import CodedCheckpoint
    from ...runtime import HLWQModel


@dataclass(frozen=True)
class CheckpointSummary:
    """A summary of a checkpoint.

    Attributes:
        name: name of the repository or folder.
        headline: widths and size, in a few words.
        lines: label and value of each line.
        chart: the chart of `hlwq bench --save`, if it belongs to this checkpoint, else None.
    """

    name: str
    headline: str
    lines: tuple[tuple[str, str], ...]
    chart: Path | None = None


def describe(path: str, model: HLWQModel) -> CheckpointSummary:
    """Summarize a checkpoint, coded or plain, and the model that was loaded from it."""
    try:
        found = _coded(path)
    except NotFoundError:
        found = _plain(path)
    return replace(found, lines=(*found.lines, *_live(model)))


def _coded(path: str) -> CheckpointSummary:
    checkpoint = open_coded(path)
    try:
        manifest, recipe = checkpoint.manifest, checkpoint.manifest.fingerprint.get("recipe", {})
        bits, size = manifest.weights_by_bits, manifest.output_bytes
        weights = sum(bits.values()) + sum(math.prod(k.shape) for k in manifest.kept)
        revision = manifest.source.get("revision")
        lines = [
            ("Weights", f"{_count(weights)}, {sum(bits.values()) / max(weights, 1):.0%} of them coded"),
            ("Coded with", _widths(bits)),
            ("Bits per weight", f"{manifest.bits_per_weight:.3f}"),
            ("Size", f"{format_size(size)}, {size / max(2 * weights, 1):.0%} of bf16 ({format_size(2 * weights)})"),
            ("Recipe", f"{recipe.get('recipe', 'unknown')}, blocks of {checkpoint.settings['block_size']}"),
            ("Made from", f"{manifest.source['id']}" + (f" at {str(revision)[:8]}" if revision else "")),
        ]
        headline = f"{_widths(bits)}, {format_size(size)} instead of {format_size(2 * weights)}"
        return CheckpointSummary(_name(path), headline, tuple(lines), _chart(checkpoint))
    finally:
        checkpoint.close()


def _plain(path: str) -> CheckpointSummary:
    source = open_source(path)
    try:
        weights = sum(math.prod(t.shape) for t in source.tensors.values())
        size = sum(t.nbytes for t in source.tensors.values())
        kinds = Counter[str]()
        for t in source.tensors.values():
            kinds[t.dtype.lower()] += t.nbytes
        kind = kinds.most_common(1)[0][0] if kinds else "nothing"
        lines = [
            ("Weights", f"{_count(weights)}, none of them coded"),
            ("Stored as", kind),
            ("Size", format_size(size)),
        ]
        return CheckpointSummary(_name(path), f"{kind}, {format_size(size)}", tuple(lines))
    finally:
        source.close()


def _live(model: HLWQModel) -> list[tuple[str, str]]:
    network = model.model
    context = "not stated" if model.max_context is None else f"{model.max_context:,} tokens"
    kind = str(network.dtype).removeprefix("torch.")
    cache = expert_cache_of(network)
    lines = [] if cache is None else [("Experts", f"{cache.slots} of {cache.experts} a layer on {network.device}")]
    return [
        *lines,
        ("Architecture", type(network).__name__),
        ("Input", "text and pictures" if model.supports_images else "text"),
        ("Context", context),
        ("Keys and values", kind if (bits := kv_bits_of(network)) is None else f"codes of {bits} bits"),
        ("Runs on", f"{network.device}, {kind}"),
    ]


def _chart(checkpoint: CodedCheckpoint) -> Path | None:
    listed = {f.name for f in checkpoint.manifest.files}
    if not {CHART, RESULTS} <= listed:
        return None
    try:
        document = json.loads(checkpoint.path(RESULTS).read_text())
        chart = checkpoint.path(CHART)
        return chart if document["checkpoint"] == checkpoint.manifest.digest and chart.is_file() else None
    except (OSError, ValueError, KeyError, TypeError):  # the page works without the chart
        return None


def _widths(bits: dict[int, int]) -> str:
    total = sum(bits.values())
    if len(bits) == 1:
        return f"{next(iter(bits))} bits"
    return ", ".join(f"{width} bits {n / total:.0%}" for width, n in bits.items())


def _count(weights: int) -> str:
    for unit, scale in (("G", 10**9), ("M", 10**6)):
        if weights >= scale:
            return f"{weights / scale:.2f} {unit}"
    return f"{weights:,}"


def _name(path: str) -> str:
    return path if is_repo_id(path) and not Path(path).exists() else Path(path).resolve().name
