"""Loading a checkpoint, quantized or not, as a transformers model of the right class, strictly complete."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from ...devices import find_devices
from ...errors import UnsupportedError, UsageError
from ...samples import resolve_model
from ..kv.attention import code_kv_cache
from ..kv.bits import KVBits
from ..modules.format import Execution
from ..offload.budget import ExpertBudget
from ..offload.placement import offload_experts
from .classes import check_answers_text, model_class
from .config import check_exists, first_sentence, read_config, reading
from .load_checks import LoadReport
from .quantizer import execution as executed
from .quantizer import offloaded_experts


def load_model(
    path: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    execution: Execution = "auto",
    kv_bits: KVBits | None = None,
    expert_budget: ExpertBudget | None = None,
) -> Any:
    """Load a checkpoint with the transformers class that its config names.

    Args:
        path: a folder, or a Hub id.
        revision: of a Hub id.
        device: `auto` (a GPU if there is one), `cpu`, `cuda:0`, or the name of a device map.
        dtype: of activations and of everything that is not coded: `auto` (the checkpoint's), bfloat16, float16 or
            float32.
        execution: of coded modules, see `QuantFormat`.
        kv_bits: widths of the codes of cached keys and values; None stores them unquantized.
        expert_budget: offload experts, except those that fit; None loads all of them onto the device.

    Raises:
        NotFoundError: the folder or repository does not exist.
        UsageError: the device or dtype is not valid, or cannot be combined with offloaded experts, or is too small.
        UnsupportedError: transformers does not know the model, or it needs code of its own, or it does not generate
            text, or its cache cannot be quantized, or its experts cannot be offloaded.
        CorruptError: tensors are missing, unexpected, or of another shape; all are named, sorted.
    """
    path = resolve_model(path)
    check_exists(path)
    _check_expert_budget(expert_budget, device, execution)
    offloading = nullcontext() if expert_budget is None else offloaded_experts()
    loaded_class = model_class(read_config(path, revision))
    check_answers_text(path, loaded_class)
    with reading(path), executed(execution), offloading:
        try:
            model, info = loaded_class.from_pretrained(
                path,
                revision=revision,
                trust_remote_code=False,
                dtype=_dtype(dtype),
                device_map=_device(device),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that all are named at once, below
            )
        except (ValueError, TypeError) as error:
            raise UnsupportedError(
                f"transformers cannot load {path}: {first_sentence(error)}.", "Check its config and generation config."
            ) from error
    LoadReport.of(*(info.get(kind, ()) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))).check(path)
    if expert_budget is not None:
        with reading(path):
            offload_experts(model, expert_budget)
    if kv_bits is not None:
        code_kv_cache(model, kv_bits)
    return model.eval()


def check_loadable(
    path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    execution: Execution = "auto",
    expert_budget: ExpertBudget | None = None,
) -> None:
    """Check the arguments of `load_model` before any work.

    Raises:
        NotFoundError: `path` is not a folder and not a valid Hub id.
        UsageError: the device or dtype is not valid, or cannot be combined with offloaded experts.
    """
    check_exists(resolve_model(path))
    _device(device)
    _dtype(dtype)
    _check_expert_budget(expert_budget, device, execution)


def _check_expert_budget(budget: ExpertBudget | None, device: str, execution: Execution) -> None:
    if budget is None:
        return
    if execution == "dense":
        raise UsageError("Offloaded experts can only run as codes.", "Remove --execution dense.")
    if device in _MAPS:
        raise UsageError(f"Experts cannot be offloaded with --device {device}.", "Name one device.")
    if budget.gpu_memory is not None and _device(device) == "cpu":
        raise UsageError("--gpu-memory needs a GPU, and there is none.", "Remove --gpu-memory.")


_MAPS = ("balanced", "balanced_low_0", "sequential")


def _device(device: str) -> str:
    if device in _MAPS:
        return device
    found = find_devices(device)
    if len(found) > 1:
        raise UsageError(f"A model cannot be loaded onto {device}.", f"Name one device, or use {', '.join(_MAPS)}.")
    return "cpu" if found[0].type == "cpu" else f"cuda:{found[0].index}"


def _dtype(dtype: str) -> Any:
    if dtype == "auto":
        return "auto"
    if dtype not in ("bfloat16", "float16", "float32"):
        raise UsageError(f"--dtype {dtype} is not valid.", "Use auto, bfloat16, float16 or float32.")
    return getattr(torch, dtype)
