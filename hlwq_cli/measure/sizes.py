"""Sizes: a checkpoint's weights, and a token in a quantized and in a dense key/value cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import open_coded
from ..checkpoint.format import MANIFEST
from ..checkpoint.io import HubRepo, is_repo_id, weights_bytes
from ..runtime.kv import GROUP, WINDOW, CodedLayer, KVBits, cache_argument, coded_cache
from ..samples import resolve_model


@dataclass(frozen=True)
class KVCacheSize:
    """Bytes of one token of one sequence, over all layers that hold codes.

    Attributes:
        bits: widths of keys and values, as in `KVBits`.
        layers: number of layers that hold codes.
        token_bytes: bytes of codes and scales per token.
        dense_token_bytes: bytes of keys and values per token in the model's dtype.
        window: number of newest tokens that always stay exact.
        group: number of tokens that are coded together after they leave the window.
    """

    bits: str
    layers: int
    token_bytes: int
    dense_token_bytes: int
    window: int
    group: int


def kv_cache_size(model: Any, bits: KVBits) -> KVCacheSize:
    """Run the model on one token and measure its cache."""
    cache = coded_cache(model.config, bits)
    with torch.inference_mode():
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), **cache_argument(model, cache))
    layers = [layer for layer in cache.layers if isinstance(layer, CodedLayer)]
    return KVCacheSize(
        bits=str(bits),
        layers=len(layers),
        token_bytes=sum(layer.token_bytes for layer in layers),
        dense_token_bytes=sum(layer.dense_token_bytes for layer in layers),
        window=WINDOW,
        group=GROUP,
    )


def weights_size(path: str) -> tuple[int, float | None]:
    """Return the bytes of a checkpoint's weights, and its bits per weight, or None if it is not coded.

    Args:
        path: a folder, a Hub id, or `sample`.

    Raises:
        NotFoundError: there is no such folder or repository.
        CorruptError: the checkpoint is coded and its files are inconsistent.
    """
    folder = Path(resolve_model(path))
    if folder.is_dir() and not (folder / MANIFEST).exists():
        return weights_bytes(folder), None
    if not folder.exists() and is_repo_id(path):
        repo = HubRepo.find(path, None)
        if MANIFEST not in repo.files:
            return weights_bytes(repo), None
    manifest = open_coded(folder if folder.is_dir() else path).manifest
    return manifest.output_bytes, manifest.bits_per_weight
