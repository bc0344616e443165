"""What the model's class says: which weights sit in linear layers. Only for models without an architecture file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def linear_weight_names(config: Mapping[str, Any], names: Iterable[str]) -> list[str] | None:
    """Those of a checkpoint's tensor names that are linear weights or stacked experts in its transformers class.

    The model is built without memory, on the meta device. Names on disk may lack or have a leading `model.`.

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

    known = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    known |= {n for n, p in model.named_parameters() if p.ndim == 3 and ".experts." in n}
    return [n for n in names if {n, f"model.{n}", n.removeprefix("model.")} & known]


def _build(config: Mapping[str, Any]) -> Any:
    import torch
    import transformers

    settings = transformers.AutoConfig.for_model(**config)
    name = (config.get("architectures") or [""])[0]
    model_class = getattr(transformers, name, None) or transformers.AutoModel
    with torch.device("meta"):
        if model_class is transformers.AutoModel:
            return transformers.AutoModel.from_config(settings)  # type: ignore[no-untyped-call]
        return model_class(settings)
