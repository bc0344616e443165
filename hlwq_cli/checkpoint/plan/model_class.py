"""What the model's class says of tensors that are in no linear layer; only for models without an architecture file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class OtherNames(NamedTuple):
    """Tensors that are no weights of linear layers or experts: those of token embeddings, and all others."""

    embeddings: list[str]
    others: list[str]


def other_names(config: Mapping[str, Any], names: Iterable[str]) -> OtherNames | None:
    """Those of a checkpoint's tensors that its transformers class holds in anything but linear layers and experts.

    The model is built without memory, on the meta device. Names on disk may lack or have a leading `model.`; names that
    the class does not have (experts one by one, towers under an older prefix) are not returned: the general rule judges
    them. Embeddings that an encoder and a decoder share count as others: they are tied to more than a head.

    Args:
        config: the checkpoint's config.json.
        names: its tensors.

    Returns:
        The names, or None where transformers is absent or does not know the model.
    """
    if "model_type" not in config:
        return None
    try:
        model = _build(config)
    except Exception:  # any failure of a foreign class to build means: judge by names
        return None
    from torch import nn

    tables = _token_embeddings(model)
    embeddings: set[str] = set()
    others: set[str] = set()
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear) and "Experts" not in type(module).__name__:
            known = embeddings if any(module is table for table in tables) else others
            known.update(f"{path}.{parameter}" for parameter, _ in module.named_parameters(recurse=False))

    def among(known: set[str]) -> list[str]:
        return [n for n in names if {n, f"model.{n}", n.removeprefix("model.")} & known]

    return OtherNames(among(embeddings), among(others))


def _token_embeddings(model: Any) -> list[Any]:
    """Embeddings of tokens: what the model begins with, and tables that layers look up, where it has them."""
    from torch import nn

    if model.config.is_encoder_decoder:
        return []
    asked = ("get_input_embeddings", "get_per_layer_input_embeddings")
    found = []
    for name in asked:
        try:
            found.append(getattr(model, name)())
        except (AttributeError, NotImplementedError):
            continue
    return [module for module in found if isinstance(module, nn.Embedding)]


def _build(config: Mapping[str, Any]) -> Any:
    import torch
    import transformers

    settings = transformers.AutoConfig.for_model(**config)
    name = (config.get("architectures") or [""])[0]
    model_class = getattr(transformers, name, None) or transformers.AutoModel
    with torch.device("meta"):
        if model_class is transformers.AutoModel:
            return transformers.AutoModel.from_config(settings)
        return model_class(settings)
