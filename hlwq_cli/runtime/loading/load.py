"""Loading a checkpoint, quantized or not, as a transformers model of the right class, strictly complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ...checkpoint import is_repo_id
from ...checkpoint.io import ask_once, hub_errors
from ...devices import find_devices
from ...errors import CorruptError, NotFoundError, UnsupportedError, UsageError
from ...samples import resolve_model
from ..kv.attention import code_kv_cache
from ..kv.bits import KVBits
from ..modules.format import Execution
from ..offload.budget import ExpertBudget
from ..offload.placement import offload_experts
from .gemma4_processor import ImageTextProcessor, needs_image_text_processor
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
        UnsupportedError: transformers does not know the model, or its cache cannot be quantized, or its experts cannot
            be offloaded.
        CorruptError: tensors are missing, unexpected, or of another shape; all are named, sorted.
    """
    path = resolve_model(path)
    _check_exists(path)
    _check_expert_budget(expert_budget, device, execution)
    offloading = nullcontext() if expert_budget is None else offloaded_experts()
    with _reading(path), executed(execution), offloading:
        config = _config(path, revision)
        model, info = model_class(config).from_pretrained(
            path,
            revision=revision,
            dtype=_dtype(dtype),
            device_map=_device(device),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that all are named at once, below
        )
    LoadReport.of(*(info.get(kind, ()) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))).check(path)
    if expert_budget is not None:
        with _reading(path):
            offload_experts(model, expert_budget)
    if kv_bits is not None:
        code_kv_cache(model, kv_bits)
    return model.eval()


def load_processor(path: str, revision: str | None = None) -> Any:
    """Load the checkpoint's processor if the model supports images, else its tokenizer.

    Raises:
        NotFoundError: it has neither.
        UnsupportedError: transformers does not know the model.
    """
    import transformers

    path = resolve_model(path)
    _check_exists(path)
    with _reading(path):
        config = _config(path, revision)
        try:
            if not supports_images(config):
                return transformers.AutoTokenizer.from_pretrained(path, revision=revision)
            if needs_image_text_processor(config):
                return ImageTextProcessor.open(path, revision)
            return transformers.AutoProcessor.from_pretrained(path, revision=revision)
        except (OSError, ValueError, TypeError) as error:
            raise NotFoundError(f"{path} has no usable tokenizer.", "Copy its tokenizer files there.") from error


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn errors of the Hub, or of a folder, into ours."""
    if not Path(path).is_dir():
        with hub_errors(path):
            yield
        return
    try:
        yield
    except OSError as error:
        what = " ".join(str(error).split()).rstrip(".")
        raise CorruptError(f"{path} cannot be read: {what}.", "Download or quantize the checkpoint again.") from error


def _config(path: str, revision: str | None) -> Any:
    import transformers

    if not Path(path).is_dir():
        ask_once(path, revision)
    try:
        return transformers.AutoConfig.from_pretrained(path, revision=revision)
    except ValueError as error:
        raise UnsupportedError(
            f"{path} has no config.json of a model that transformers knows.",
            "Give the folder or Hub id of a checkpoint.",
        ) from error


def supports_images(config: Any) -> bool:
    """Return whether a model takes images."""
    return getattr(config, "vision_config", None) is not None


def model_class(config: Any) -> Any:
    """Return the transformers class that generates text with a config's model."""
    import transformers

    name = (getattr(config, "architectures", None) or [""])[0]
    if name.endswith(("ForCausalLM", "ForConditionalGeneration")) and hasattr(transformers, name):
        return getattr(transformers, name)
    return transformers.AutoModelForImageTextToText if supports_images(config) else transformers.AutoModelForCausalLM


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
    _check_exists(resolve_model(path))
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


def _check_exists(path: str) -> None:
    if not Path(path).is_dir() and (Path(path).exists() or not is_repo_id(path)):
        raise NotFoundError(f"There is no folder {path}.", "Give the folder of a checkpoint, or a Hub id owner/name.")


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
