"""What the model's class says: which tensors are no linear layers. Only for models without an architecture file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def other_parameter_names(config: Mapping[str, Any], names: Iterable[str]) -> list[str] | None:
    """Those of a checkpoint's tensors that its transformers class holds in anything but linear layers and experts.

    The model is built without memory, on the meta device. Names on disk may lack or have a leading `model.`; names that
    the class does not have (experts one by one, towers under an older prefix) are not returned: the general rule judges
    them.

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

    known = {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if not isinstance(module, nn.Linear) and "Experts" not in type(module).__name__
        for parameter, _ in module.named_parameters(recurse=False)
    }
    return [n for n in names if {n, f"model.{n}", n.removeprefix("model.")} & known]


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
