"""A checkpoint, coded or plain, as a transformers model: of the right class, and strictly complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ...checkpoint.io.hub_repo import ask_once, hub_errors, is_repo_id
from ...checkpoint.run.devices import find_devices
from ...errors import CorruptError, NotFoundError, UnsupportedError, UsageError
from ...samples import resolve_model
from ..kv.attention import code_kv_cache
from ..kv.bits import KVBits
from ..modules.format import Execution
from ..offload.expert_cache import ExpertBudget, offload_experts
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
        device: `auto` (a GPU where there is one), `cpu`, `cuda:0`, or a device map's name.
        dtype: of all that is not coded, and of activations: `auto` is the checkpoint's; or bfloat16, float16, float32.
        execution: of coded modules, see `QuantFormat`.
        kv_bits: keep keys and values in codes of these widths; None keeps them as they are.
        expert_budget: keep experts outside the GPU, but for those that have room there; None loads them all.

    Raises:
        NotFoundError: no such folder or repository.
        UsageError: there is no such device or type; or experts outside it do not go with them, or have no room.
        UnsupportedError: transformers knows no such model, or its keys and values cannot be kept in codes, or its
            experts outside the GPU.
        CorruptError: tensors are missing, left over, or of another shape; all are named, sorted.
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
    """The checkpoint's processor when it sees pictures, else its tokenizer.

    Raises:
        NotFoundError: it has neither.
        UnsupportedError: transformers knows no such model.
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
    """Errors of the Hub, or of a folder, in our words."""
    if not Path(path).is_dir():
        with hub_errors(path):
            yield
        return
    try:
        yield
    except OSError as error:
        what = " ".join(str(error).split()).rstrip(".")
        raise CorruptError(f"{path} cannot be read: {what}.", "Fetch or make the checkpoint again.") from error


def _config(path: str, revision: str | None) -> Any:
    import transformers

    if not Path(path).is_dir():
        ask_once(path, revision)
    try:
        return transformers.AutoConfig.from_pretrained(path, revision=revision)
    except ValueError as error:
        raise UnsupportedError(
            f"{path} has no config.json of a model that transformers knows.", "Give a checkpoint's folder or Hub id."
        ) from error


def supports_images(config: Any) -> bool:
    """Whether a model takes pictures."""
    return getattr(config, "vision_config", None) is not None


def model_class(config: Any) -> Any:
    """The transformers class for generating text with a config's model."""
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
    """Find out before any work what would keep `load_model` from beginning.

    Raises:
        NotFoundError: `path` is no folder and cannot be a Hub id.
        UsageError: there is no such device or type; or experts outside it do not go with them.
    """
    _check_exists(resolve_model(path))
    _device(device)
    _dtype(dtype)
    _check_expert_budget(expert_budget, device, execution)


def _check_expert_budget(budget: ExpertBudget | None, device: str, execution: Execution) -> None:
    if budget is None:
        return
    if execution == "dense":
        raise UsageError("Experts outside the GPU are multiplied as codes.", "Leave --execution dense out.")
    if device in _MAPS:
        raise UsageError("Experts outside the GPU are for a model on one device.", f"Name it instead of {device}.")
    if budget.gpu_memory is not None and _device(device) == "cpu":
        raise UsageError("There is no GPU here whose memory could be kept to a size.", "Leave --gpu-memory out.")


def _check_exists(path: str) -> None:
    if not Path(path).is_dir() and (Path(path).exists() or not is_repo_id(path)):
        raise NotFoundError(f"There is no folder {path}.", "Give a checkpoint's folder, or a Hub id owner/name.")


_MAPS = ("balanced", "balanced_low_0", "sequential")


def _device(device: str) -> str:
    if device in _MAPS:
        return device
    found = find_devices(device)
    if len(found) > 1:
        raise UsageError(f"A model is loaded onto one device, not {device}.", f"Or use {', '.join(_MAPS)}.")
    return "cpu" if found[0].torch_device.type == "cpu" else f"cuda:{found[0].torch_device.index}"


def _dtype(dtype: str) -> Any:
    if dtype == "auto":
        return "auto"
    if dtype not in ("bfloat16", "float16", "float32"):
        raise UsageError(f"--dtype {dtype} is no type to load into.", "Use auto, bfloat16, float16 or float32.")
    return getattr(torch, dtype)
