"""Which parameters of a model can be coded, and the role that their modules give them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_HEADS = frozenset(
    ("lm_head", "head", "classifier", "score", "lm_loss", "qa_outputs", "embed_out", "output_projection")
)
_ROUTERS = frozenset(("router", "gate", "shared_expert_gate", "switch"))
_ROUTER_CLASS = re.compile(r"Router|TopK|Topk|(MoE|Moe|MOE)\w*Gate(?!d)")
ROUTERS_STAY = "routers stay exact"
"""Why a router is kept: many modules that choose experts are not linear layers, and their codes load nowhere."""
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_layer")
_SAME_AS_LINEAR = frozenset({"FalconLinear"})
"""Subclasses of torch.nn.Linear whose own forward computes x W^T + b as well."""
_TRANSPOSED_CLASSES = frozenset({"Llama4TextExperts", "AriaGroupedExpertsGemm"})
"""Expert modules that hold (experts, in, out) and do not say so by an attribute `is_transposed`."""
_TOWERS = (
    ("vision", re.compile(r"(^|\.)(vision|visual|image|vit)[^.]*\.")),
    ("audio", re.compile(r"(^|\.)(audio|speech)[^.]*\.")),
)


@dataclass(frozen=True)
class ParameterKind:
    """What a parameter is to its module.

    Attributes:
        role: `linear`, `vision`, `audio`, `expert`, `embedding`, `head`, `router` or `other`.
        is_codable: whether its module can hold codes in its place.
        is_transposed: whether its module holds it as (..., in, out).
        reason: why it is not codable.
    """

    role: str
    is_codable: bool
    is_transposed: bool = False
    reason: str = ""


def parameter_kinds(model: Any) -> dict[str, ParameterKind]:
    """Return the kind of each parameter of a transformers model, which may be on the meta device."""
    heads, tables, counts = _head_paths(model), token_embeddings(model), _expert_counts(model.config)
    kinds = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind = _kind(path, module, name, parameter, tables)
            if path in heads and kind.role != "embedding":
                kind = ParameterKind("head", kind.is_codable, kind.is_transposed, kind.reason)
            elif parameter.ndim == 2 and _is_router(model, path, parameter.shape[0], counts):
                kind = ParameterKind("router", False, False, ROUTERS_STAY)
            kinds[f"{path}.{name}" if path else name] = kind
    return kinds


def is_plain_linear(module: Any) -> bool:
    """Whether a module is a linear layer that computes what torch.nn.Linear does."""
    from torch import nn

    own = type(module).forward is nn.Linear.forward or type(module).__name__ in _SAME_AS_LINEAR
    return isinstance(module, nn.Linear) and own


def is_conv1d(module: Any) -> bool:
    """Whether a module is transformers' Conv1D, a linear layer whose weight is (in, out)."""
    from transformers.pytorch_utils import Conv1D

    return type(module) is Conv1D


def token_embeddings(model: Any) -> list[Any]:
    """Return the embeddings of tokens: those that the model begins with, and tables that its layers look up.

    Embeddings that an encoder and a decoder share are left out: they are tied to more than a head.
    """
    from torch import nn

    if model.config.is_encoder_decoder:
        return []
    found = []
    for name in ("get_input_embeddings", "get_per_layer_input_embeddings"):
        try:
            found.append(getattr(model, name)())
        except (AttributeError, NotImplementedError):
            continue
    return [module for module in found if isinstance(module, nn.Embedding)]


def _kind(path: str, module: Any, name: str, parameter: Any, tables: list[Any]) -> ParameterKind:
    if name == "weight" and parameter.ndim == 2 and is_plain_linear(module):
        return ParameterKind(_tower(path), True)
    if name == "weight" and parameter.ndim == 2 and is_conv1d(module):
        return ParameterKind(_tower(path), True, is_transposed=True)
    if name == "weight" and any(module is table for table in tables):
        return ParameterKind("embedding", True)
    if parameter.ndim == 3 and _holds_experts(path, module):
        transposed = getattr(module, "is_transposed", type(module).__name__ in _TRANSPOSED_CLASSES)
        return ParameterKind("expert", True, bool(transposed))
    what = "a linear layer with a forward of its own" if _is_linear(module) else "not a linear layer"
    return ParameterKind("other", False, reason=f"{type(module).__name__} is {what}")


def _is_linear(module: Any) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear)


def _tower(path: str) -> str:
    """Return the role of a linear layer: that of the tower that it is in, else `linear`."""
    return next((role for role, pattern in _TOWERS if pattern.search(path)), "linear")


def _holds_experts(path: str, module: Any) -> bool:
    words = (type(module).__name__, *path.split(".")[-2:])
    return any("expert" in word.lower() for word in words) or any(hasattr(module, name) for name in _EXPERT_COUNTS)


def _head_paths(model: Any) -> set[str]:
    """Return the paths of the modules that turn hidden states into results: logits of tokens, classes or spans."""
    paths = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in _HEADS}
    try:
        output = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        output = None
    paths |= {path for path, module in model.named_modules() if module is output}
    paths |= {tied.rpartition(".")[0] for tied in _tied_to_embeddings(model)}
    if getattr(model, model.base_model_prefix, model) is not model:  # what stands beside the base model is its head
        paths |= {path for path, _ in _linear_children(model)}
    return paths


def _tied_to_embeddings(model: Any) -> Iterator[str]:
    from torch import nn

    for tied, source in getattr(model, "all_tied_weights_keys", {}).items():
        if isinstance(model.get_submodule(source.rpartition(".")[0]), nn.Embedding):
            yield tied


def _linear_children(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the linear layers that are the model's own children, alone or in a list."""
    from torch import nn

    for name, child in model.named_children():
        if isinstance(child, nn.Linear):
            yield name, child
        elif isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{i}", m) for i, m in enumerate(child) if isinstance(m, nn.Linear))


def _expert_counts(config: Any) -> set[int]:
    """Return the numbers of experts that a configuration or a part of it names."""
    settings: list[Mapping[str, Any]] = [config.to_dict()]
    settings += [value for value in settings[0].values() if isinstance(value, dict)]
    found = (part.get(name) for part in settings for name in _EXPERT_COUNTS)
    return {value for value in found if isinstance(value, int)}


def _is_router(model: Any, path: str, rows: int, counts: set[int]) -> bool:
    """Whether the module at a path chooses experts: by a class of routers around it, or by its name and its rows."""
    parts = path.split(".")
    around = [".".join(parts[:n]) for n in range(max(1, len(parts) - 1), len(parts) + 1)]
    if any(_ROUTER_CLASS.search(type(model.get_submodule(p)).__name__) for p in around):
        return True
    return parts[-1] in _ROUTERS and (rows in counts or rows == 1)
