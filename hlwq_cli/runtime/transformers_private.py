"""Everything of transformers that is not its public interface, and every patch of another library's object.

An upgrade of transformers that moves one of these names fails in tests/runtime/test_transformers_private.py. The names
and signatures hold for transformers 5.17 to 5.24. docs/architecture.md lists the patches.

This module imports transformers only when one of its names is used: `import hlwq_cli` must stay quick, and the plugin
is loaded while transformers.quantizers is being imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers.cache_utils import CacheLayerMixin as CacheLayerMixin
    from transformers.cache_utils import DynamicLayer as DynamicLayer
    from transformers.cache_utils import DynamicSlidingWindowLayer as DynamicSlidingWindowLayer
    from transformers.generation.configuration_utils import GenerationMode as GenerationMode
    from transformers.image_utils import make_nested_list_of_images as make_nested_list_of_images
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask as sdpa_mask
    from transformers.models.gemma4.image_processing_pil_gemma4 import (
        Gemma4ImageProcessorPil as Gemma4ImageProcessorPil,
    )
    from transformers.quantizers.base import HfQuantizer as HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin as QuantizationConfigMixin

INTERNAL = {
    "CacheLayerMixin": "transformers.cache_utils",
    "DynamicLayer": "transformers.cache_utils",
    "DynamicSlidingWindowLayer": "transformers.cache_utils",
    "GenerationMode": "transformers.generation.configuration_utils",
    "make_nested_list_of_images": "transformers.image_utils",
    "sdpa_attention_forward": "transformers.integrations.sdpa_attention",
    "sdpa_mask": "transformers.masking_utils",
    "Gemma4ImageProcessorPil": "transformers.models.gemma4.image_processing_pil_gemma4",
    "HfQuantizer": "transformers.quantizers.base",
    "QuantizationConfigMixin": "transformers.utils.quantization_config",
}
"""Names that other files import from here, and the internal module of transformers that defines each."""
QUANTIZERS = "transformers.quantizers"
"""The package that lists the quantizers; importing it is the moment to register ours."""


def __getattr__(name: str) -> Any:
    """Return a name of `INTERNAL`, importing its module on first use."""
    if name not in INTERNAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(INTERNAL[name]), name)


# --- Registering the quantizer ---


def after_import(name: str, action: Callable[[], None]) -> None:
    """Call `action` once the module `name` is imported: now if it is already, else right after its import.

    transformers finds no plugins by itself, and importing it takes seconds that `hlwq --help` must not pay. The finder
    in `sys.meta_path` removes itself when it has acted. It ends when transformers reads entry points.
    """
    if name in sys.modules:
        action()
    elif not any(isinstance(finder, _AfterImport) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(name, action))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Ignores every module but one, and gives that one a loader that acts after the usual loader."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name, self.action = name, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the usual spec of the module, with the loader exchanged."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ActingLoader(spec.loader, self.action)
        return spec


class _ActingLoader(importlib.abc.Loader):
    def __init__(self, usual: importlib.abc.Loader, action: Callable[[], None]) -> None:
        self.usual, self.action = usual, action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.usual.exec_module(module)
        self.action()


def register_quantizer(name: str, config: type, quantizer: type) -> None:
    """Make `from_pretrained` know a quantization method; do nothing when it is registered already."""
    from transformers.quantizers import auto

    if name not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        auto.register_quantization_config(name)(config)
        auto.register_quantizer(name)(quantizer)


# --- Loading ---


def skip_initialization(module: Any) -> None:
    """Mark a module or tensor class, so that transformers does not draw random values for what is not in the file."""
    module._is_hf_initialized = True


def rename_stored(model: Any, names: Sequence[str]) -> dict[str, str]:
    """Return stored names with the prefixes that the model's conversion mapping gives them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    return {name: rename_source_key(name, renamings, [])[0] for name in names}


def names_when_unexpected(model: Any, names: Iterable[str]) -> set[str]:
    """Return what transformers calls stored tensors when it reports that the model does not take them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = set()
    for name in names:
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, shapes)
        found.add(new)
        if pattern is not None:
            targets = next(c for c in converters if pattern in c.source_patterns).target_patterns
            found |= {new.replace(targets[0], target) for target in targets}
    return found


def keep_names(entries: Iterable[Any], names: Collection[str]) -> None:
    """Make entries of a conversion mapping leave some names as they are, when loading and when saving.

    Each entry gets a class of its own, derived from the one it had; the entries belong to one model. It ends when
    transformers does not rename what has the model's own name already: a few renamings are no identity on those.
    """
    for entry in entries:
        entry.__class__ = _keeping(type(entry), names)


def _keeping(usual: Any, names: Collection[str]) -> type:
    class Keeping(usual):  # type: ignore[misc]
        __slots__ = ()

        def rename_source_key(self, source_key: str) -> Any:
            return (source_key, None) if source_key in names else super().rename_source_key(source_key)

        def reverse_transform(self) -> Any:
            entry = super().reverse_transform()
            entry.__class__ = _keeping(type(entry), names)
            return entry

    return Keeping


def watch_loading(model: Any, check: Callable[[Any], None]) -> None:
    """Call `check` with the lists of missing and unexpected keys, once they are final and before they are logged.

    Replaces a method on this one model; the first call removes it again. It ends when a quantizer can see the lists.
    """
    usual = model._adjust_missing_and_unexpected_keys

    def adjust(info: Any) -> None:
        del model._adjust_missing_and_unexpected_keys
        usual(info)
        check(info)

    model._adjust_missing_and_unexpected_keys = adjust


def casts_parameters() -> bool:
    """Return whether loading casts kept parameters to the requested dtype; 5.17 leaves renamed ones in the file's."""
    from transformers.quantizers.base import HfQuantizer

    return hasattr(HfQuantizer, "get_new_dtype")


def float32_modules(model: Any) -> set[str]:
    """Return names of the modules that a model keeps in float32 whatever dtype is requested."""
    return {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}


def tied_weights(model: Any) -> dict[str, str]:
    """Return the parameters that a model ties, each with the parameter it is tied to."""
    return dict(model.all_tied_weights_keys)


def untie(model: Any, tied: Collection[str]) -> None:
    """Take parameters out of what transformers ties, now and at each later `tie_weights`; this stays for good.

    Call it before modules are replaced. Models may declare what they tie by patterns; these become exact names.
    """
    for prefix, module in model.named_modules() if tied else ():
        declared = getattr(module, "_tied_weights_keys", None)
        if not isinstance(declared, dict) or not hasattr(module, "get_expanded_tied_weights_keys"):
            continue
        start = f"{prefix}." if prefix else ""
        expanded = module.get_expanded_tied_weights_keys(all_submodels=False)
        names = {t: s for t, s in expanded.items() if start + t not in tied}
        if names != expanded:
            is_exact = set(declared) == set(expanded)
            module._tied_weights_keys = names if is_exact else {_pattern(t): _pattern(s) for t, s in names.items()}
    for name in tied:
        model.all_tied_weights_keys.pop(name, None)


def _pattern(name: str) -> str:
    """Return the pattern that matches a name and no other."""
    return f"{re.escape(name)}$"


# --- Modules ---


def change_class(module: nn.Module, new: type[nn.Module]) -> None:
    """Give a module another class in place: references to it, its hooks and its place in the model stay.

    Used for modules with codes, whose class `new` derives from. It stays for good.
    """
    module.__class__ = new


def override_resize(model: Any, resize: Callable[..., nn.Module]) -> None:
    """Replace `resize_token_embeddings` on this one model; it stays for good."""
    model.resize_token_embeddings = resize


def has_default_gate(experts: nn.Module) -> bool:
    """Return whether an experts module gates as transformers does by default."""
    return getattr(getattr(experts, "_apply_gate", None), "__name__", "") == "_default_apply_gate"


def is_experts_module(module: nn.Module) -> bool:
    """Return whether a module is stacked experts with a choice of implementations."""
    return hasattr(module, "is_transposed") and hasattr(module, "_apply_gate")


def has_usual_layout(experts: nn.Module) -> bool:
    """Return whether a module is gated experts as (experts, out, in), gate before up, with transformers' usual call."""
    if not is_experts_module(experts):
        return False
    yes = all(getattr(experts, name, True) for name in ("has_gate", "is_concatenated"))
    no = any(getattr(experts, name, False) for name in ("is_transposed", "has_bias", "has_post_expert_norm"))
    arguments = list(inspect.signature(type(experts).forward).parameters)[1:]
    return yes and not no and len(arguments) == len(("hidden_states", "top_k_index", "top_k_weights"))


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Run modules with other forward functions inside this context; what was there is put back after it."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, own in before.items():
            if own is None:
                del module.__dict__["forward"]
            else:
                module.forward = own


# --- Models whose weights come and go ---


def fill_buffers(model: Any, unfilled: Collection[str], device: torch.device) -> None:
    """Give a model on the meta device what no file holds, with the values that a new model has.

    Args:
        model: on the meta device.
        unfilled: parameters and persistent buffers that are not stored; buffers that are not persistent come on top.
        device: where to put them. Everything else stays on the meta device.
    """
    import torch

    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in unfilled:
            skip_initialization(tensor)
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for own, tensor in held.items():
                is_unfilled = f"{path}.{own}".lstrip(".") in unfilled or own in module._non_persistent_buffers_set
                if tensor is not None and is_unfilled:
                    empty = torch.empty_like(tensor, device=device)
                    held[own] = torch.nn.Parameter(empty, False) if held is module._parameters else empty
    with torch.no_grad():
        model.initialize_weights()


def set_device(model: Any, device: torch.device) -> None:
    """Let a model say that it is on a device, although its parameters may be on the meta device; it stays for good."""
    from transformers import PreTrainedModel

    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            own = type(module)
            members = {"device": property(lambda self: device), "__module__": own.__module__}
            change_class(module, type(own.__name__, (own,), members))


def choose_experts(model: Any, implementation_of: Callable[[nn.Module], str]) -> None:
    """Choose the implementation of each experts module of a model; modules of one configuration share it."""
    for module in model.modules():
        if is_experts_module(module):
            module.config._experts_implementation = implementation_of(module)


# --- Attention and caches ---


def attention_of(config: Any) -> str:
    """Return the name of a text config's attention implementation."""
    name: str = config._attn_implementation
    return name


@contextmanager
def implementations(config: Any, attention: str | None, experts: str | None) -> Iterator[None]:
    """Run a model with other attention and experts implementations inside this context; None changes nothing."""
    before = config._attn_implementation, config._experts_implementation
    if attention is not None:
        config._attn_implementation = attention
    if experts is not None:
        config._experts_implementation = experts
    try:
        yield
    finally:
        config._attn_implementation, config._experts_implementation = before


def cache_name(model: Any) -> str:
    """Return the name of the forward argument for the cache: `past_key_values`, or `cache` in newer versions."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def supply_cache(model: Any, supply: Callable[[Any, Any], Any]) -> None:
    """Let `supply(cache, config)` choose the cache of every forward pass of a model.

    A forward pre-hook, which stays on this model for good.
    """
    model.register_forward_pre_hook(partial(_supply, cache_name(model), supply), with_kwargs=True)


def _supply(
    name: str, supply: Callable[[Any, Any], Any], module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kwargs[name] = supply(kwargs.get(name), module.config)
    return args, {**kwargs, "use_cache": True}


def replace_layers(cache: Any, layers: list[Any]) -> None:
    """Give an empty cache other layers, and let it make no more by itself."""
    cache.layers, cache.layer_class_to_replicate = layers, None


def is_placeholder(cache_layer: Any) -> bool:
    """Return whether a cache layer stands for one that shares another layer's keys; 5.17 has no such layers."""
    return type(cache_layer).__name__ == "DummyLayer"


# --- Generation ---


def has_own_positions(model_class: type) -> bool:
    """Return whether a model computes the position ids of generation in its own way."""
    from transformers import GenerationMixin

    name = "_prepare_position_ids_for_generation"
    return getattr(model_class, name) is not getattr(GenerationMixin, name)


def generation_config(model: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the config of a `generate` call with these options, and the inputs that are left."""
    config, inputs = model._prepare_generation_config(None, **options)
    return config, {name: value for name, value in inputs.items() if value is not None}


def logits_processors(model: Any, config: Any, prompt_tokens: int, device: Any) -> Any:
    """Return the processors of a `generate` call; sets the config's special tokens."""
    model._prepare_special_tokens(config, True, device=device)
    return model._get_logits_processor(config, input_ids_seq_length=prompt_tokens, device=device)


# --- Serving ---


@contextmanager
def served_by(
    load_model: Callable[[], Any], load_processor: Callable[[], Any], in_front: Callable[[Any], Any]
) -> Iterator[None]:
    """Let `transformers serve` take its model and processor from here, and put an application in front of its own.

    Replaces two methods of its model manager and `build_server` inside this context, sends the log of requests to
    stderr, and lets the model find the tokenizer in a processor, which `stop` needs and the server passes in its place.
    It ends when `Serve` takes a loaded model and an application.
    """
    from transformers.cli.serving import model_manager, server
    from uvicorn.config import LOGGING_CONFIG

    manager: Any = model_manager.ModelManager
    before = manager._load_model, manager._load_processor, server.build_server
    log = LOGGING_CONFIG["handlers"]["access"]
    stream = log["stream"]

    def build(*args: Any, **kwargs: Any) -> Any:
        return in_front(before[2](*args, **kwargs))

    def load(*args: Any, **kwargs: Any) -> Any:
        model = load_model()
        generate = model.generate

        def with_tokenizer(*args: Any, tokenizer: Any = None, **kwargs: Any) -> Any:
            return generate(*args, tokenizer=getattr(tokenizer, "tokenizer", tokenizer), **kwargs)

        model.generate = with_tokenizer
        return model

    manager._load_model = load
    manager._load_processor = lambda self, *args, **kwargs: load_processor()
    server.build_server = build
    log["stream"] = "ext://sys.stderr"
    try:
        yield
    finally:
        log["stream"] = stream
        manager._load_model, manager._load_processor, server.build_server = before


# --- torch ---


def silence_sync_warning() -> None:
    """Ignore torch's warning that synchronization debugging is a prototype.

    For the whole process and for good: `warnings.catch_warnings` is not safe while other threads run.
    """
    warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
