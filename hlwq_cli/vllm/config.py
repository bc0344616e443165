"""The quantization configuration of vLLM: which layers hold codes, and the options of the plugin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from ..errors import UsageError
from .embedding import HLWQEmbeddingMethod
from .linear import HLWQLinearMethod
from .moe import HLWQMoEMethod
from .offload import SlotPools
from .stored import StoredMatrix, StoredTensors, stored_tensors

Execution = Literal["auto", "coded", "dense"]
_OPTIONS = ("execution", "expert_cache_slots")
_MERGED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
"""Merged layers of models that do not list theirs."""


@dataclass(frozen=True)
class Options:
    """Options of the plugin, from `--additional-config '{"hlwq": {...}}'`.

    Attributes:
        execution: `coded` multiplies by codes, `dense` decodes linear layers once after loading, `auto` is `dense` on
            the CPU and `coded` elsewhere.
        expert_cache_slots: experts of each layer that have slots on the GPU, with all of them in host memory; None
            keeps all experts on the GPU.
    """

    execution: Execution = "auto"
    expert_cache_slots: int | None = None

    @classmethod
    def read(cls, additional: Any) -> Self:
        """Read the entry `hlwq` of vLLM's `additional_config`.

        Raises:
            UsageError: it has an unknown option or a wrong value.
        """
        found = additional.get("hlwq", {}) if isinstance(additional, dict) else {}
        if not isinstance(found, dict) or set(found) - set(_OPTIONS):
            raise UsageError(f"additional_config has {found!r} for hlwq.", f"Its options are {', '.join(_OPTIONS)}.")
        options = cls(**found)
        if options.execution not in get_args(Execution):
            raise UsageError(f"The execution {options.execution!r} is unknown.", "Use auto, coded or dense.")
        slots = options.expert_cache_slots
        if slots is not None and (type(slots) is not int or slots < 1):
            raise UsageError(f"expert_cache_slots is {slots!r}.", "Give a whole number of at least 1.")
        return options

    def is_dense(self, device: torch.device) -> bool:
        """Return whether linear layers on a device are decoded once."""
        return self.execution == "dense" or (self.execution == "auto" and device.type == "cpu")


class HLWQvLLMConfig(QuantizationConfig):  # type: ignore[misc]
    """The `quantization_config` of an HLWQ checkpoint; its codes are described by the checkpoint's headers.

    Attributes:
        path: folder or Hub id of the checkpoint, once vLLM has named it.
        pools: slots of experts outside the GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path: str | None = None
        self.pools = SlotPools()
        self._mapper: Any = None

    @classmethod
    def get_name(cls) -> str:
        """Return `hlwq`."""
        return "hlwq"

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Return the types of activations that products with codes take."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Return the oldest compute capability, times ten."""
        return 75

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Return no file names: everything is in config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the configuration; what `config` says is read again, and checked, with the headers."""
        return cls()

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """Take the checkpoint's path, and refuse a bad folder in the user's own process; see QuantizationConfig."""
        self.path = model_name
        if Path(model_name).is_dir():
            stored_tensors(model_name, None)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Take the model's mapping of names; see QuantizationConfig."""
        self._mapper = hf_to_vllm_mapper

    def stored(self) -> StoredTensors:
        """Return what the checkpoint stores.

        Raises:
            HlwqError: the checkpoint is not valid; see `open_coded`.
        """
        model = get_current_vllm_config().model_config
        path = self.path or model.model
        found = stored_tensors(path, model.revision if path == model.model else None)
        if self._mapper is not None:
            found.add_names(self._mapper._map_name, id(self._mapper))
        return found

    def options(self) -> Options:
        """Return the options that the user gave."""
        return Options.read(get_current_vllm_config().additional_config)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Return how vLLM runs a layer: from codes, or as usual where it is not coded."""
        stored = self.stored()
        if isinstance(layer, LinearBase):
            matrices = self._matrices(stored, prefix)
            return HLWQLinearMethod(stored, matrices, self.options(), prefix) if matrices else UnquantizedLinearMethod()
        if isinstance(layer, RoutedExperts):
            stacks = stored.stacks(prefix)
            return None if stacks is None else HLWQMoEMethod(layer.moe_config, stored, stacks, self, prefix)
        if isinstance(layer, VocabParallelEmbedding):
            shape = (layer.org_vocab_size, layer.embedding_dim)
            matrix = stored.matrix(prefix) if prefix else stored.embeddings(shape)  # some models give no prefix
            if matrix is None and not (isinstance(layer, ParallelLMHead) and self._is_tied_to_codes(stored, prefix)):
                return None
            return HLWQEmbeddingMethod(stored, matrix, prefix)
        return None

    def _matrices(self, stored: StoredTensors, prefix: str) -> tuple[StoredMatrix, ...]:
        """Return the coded matrices of a layer in the order of its rows; none if one of them is not coded."""
        own = stored.matrix(prefix)
        if own is not None:
            return (own,)
        path, _, last = prefix.rpartition(".")
        names = [f"{path}.{name}" for name in (self.packed_modules_mapping or {}).get(last, _MERGED.get(last, ()))]
        found = {name: stored.matrix(name) for name in names}
        values, keys = f"{path}.v_proj", f"{path}.k_proj"
        if values in found and found[values] is None and not stored.is_kept(values):
            found[values] = found.get(keys)  # Gemma 4's values of full attention are its keys
        matrices = [matrix for matrix in found.values() if matrix is not None]
        return tuple(matrices) if len(matrices) == len(names) else ()

    def _is_tied_to_codes(self, stored: StoredTensors, prefix: str) -> bool:
        embeddings = stored.matrix(f"{prefix.rpartition('.')[0]}.embed_tokens".lstrip("."))
        return embeddings is not None and not stored.is_kept(prefix)
