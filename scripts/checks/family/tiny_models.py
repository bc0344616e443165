"""Tiny models, with random weights, of the model types that transformers ships, and inputs that they accept.

No sizes are written down per model type, except for a few: a configuration is made from the class's own defaults.
Sizes that are known by name are made small. Where the result does not build, fewer of them are changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from scripts.checks.family.tiny_settings import (
    CLASS_SETTINGS,
    COUNTS,
    LAYER_COUNTS,
    LEVELS,
    MAX_PARAMETERS,
    OTHER_LAYER,
    OWN_SETTINGS,
    PER_LAYER,
    STAGES,
    VOCABULARY,
    WIDTHS,
)

Changes = Mapping[str, int | None]
NOTHING: Changes = {}

AUTO_CLASSES: dict[str, Any] = {
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image-text": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "base": auto.MODEL_MAPPING_NAMES,
}


@dataclass(frozen=True)
class Family:
    """A model type and one of its classes.

    Attributes:
        model_type: as in config.json.
        class_name: of the model.
        auto_class: short name of the auto class that lists it; see AUTO_CLASSES.
    """

    model_type: str
    class_name: str
    auto_class: str


class NotBuiltError(Exception):
    """No tiny model of this type can be built here."""


def families() -> Iterator[Family]:
    """Yield every class of the auto classes, in their order; base classes only of types that have no other."""
    seen: set[tuple[str, str]] = set()
    types: set[str] = set()
    for kind, mapping in AUTO_CLASSES.items():
        for model_type, names in mapping.items():
            for name in names if isinstance(names, tuple | list) else [names]:
                if (model_type, name) in seen or (kind == "base" and model_type in types):
                    continue
                seen.add((model_type, name))
                yield Family(model_type, name, kind)
        types |= set(mapping)


def tiny_config(model_type: str, changes: Changes = NOTHING) -> PreTrainedConfig:
    """Return a configuration with small sizes.

    Args:
        model_type: as in config.json.
        changes: sizes other than the small ones; see LEVELS.
    """
    settings = with_own(shrink(CONFIG_MAPPING[model_type], changes), model_type)
    config = CONFIG_MAPPING[model_type](**settings)
    set_special_tokens(config)
    return config


def with_own(settings: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Return settings with those that a model type has of its own."""
    own = OWN_SETTINGS.get(model_type, {})
    return settings | {
        name: settings[name] | value if isinstance(value, dict) and isinstance(settings.get(name), dict) else value
        for name, value in own.items()
    }


def default_settings(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return what a configuration class sets when it is given nothing, or its own settings where it demands some."""
    try:
        config = cls()
    except Exception:
        config = cls(**OWN_SETTINGS.get(cls.model_type, {}))
    return {name: value for name, value in config.to_dict().items() if name != "transformers_version"}


def shrink(cls: type[PreTrainedConfig], changes: Changes) -> dict[str, Any]:
    """Return settings of a configuration class, small; those of parts are dictionaries in it."""
    base = default_settings(cls)
    aliases = getattr(cls, "attribute_map", None) or {}
    settings: dict[str, Any] = {}
    stages = len(base[STAGES]) if isinstance(base.get(STAGES), list | tuple) else None
    for name, size in (COUNTS | WIDTHS | changes).items():
        real = aliases.get(name, name)
        given = base.get(real)
        unknown = real not in base or isinstance(given, list | tuple | dict | str | bool)
        if size is None or unknown or (stages and given == stages) or is_fixed(cls, real):
            continue
        larger = isinstance(given, int) and 0 < given < size and name not in changes
        settings[real] = given if larger else size
    if stages and STAGES not in changes:
        settings[STAGES] = [min(count, 2) for count in base[STAGES]]
    for name, part in (getattr(cls, "sub_configs", None) or {}).items():
        settings[name] = None if name in changes else shrink_part(base.get(name), part, changes)
    settings |= per_layer_settings(cls, base, settings)
    return {name: value for name, value in settings.items() if value is not None}


def is_fixed(cls: type, name: str) -> bool:
    """Return whether a setting is a property that cannot be set."""
    member = inspect.getattr_static(cls, name, None)
    return isinstance(member, property) and member.fset is None


def shrink_part(given: Any, part: type, changes: Changes) -> dict[str, Any] | None:
    """Return small settings of a part of a model, such as its vision tower; None leaves the default."""
    if isinstance(given, dict) and given.get("model_type") in CONFIG_MAPPING:
        part = CONFIG_MAPPING[given["model_type"]]
    if not isinstance(part, type) or not issubclass(part, PreTrainedConfig):
        return None
    try:
        settings = with_own(shrink(part, changes), part.model_type)
    except Exception:
        return None
    if isinstance(given, dict):
        cut = {name for name, value in default_settings(part).items() if isinstance(value, list | tuple)}
        usual = {name: value for name, value in given.items() if name not in settings and name not in cut}
        settings = usual | settings
    return settings | {"model_type": part.model_type} if part.model_type else settings


def per_layer_settings(cls: type, base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return lists with an entry for each layer, cut to layers that have every kind of entry."""
    counts = [name for name in LAYER_COUNTS if name in settings]
    if not counts:
        return {}
    layers = base[counts[0]]
    lists = {n: list(v) for n, v in base.items() if isinstance(v, list | tuple) and len(v) > 2 and not is_fixed(cls, n)}
    lists = {name: value for name, value in lists.items() if not name.endswith(("channels", "strides"))}
    lists = {name: value for name, value in lists.items() if not name.endswith(("channels", "strides"))}
    lists = {name: value for name, value in lists.items() if len(value) == layers or name in PER_LAYER}
    places = sorted({value.index(kind) for name, value in lists.items() if name in PER_LAYER for kind in value})
    if len(places) < 2:
        places = sorted({*places, 0, 1})[:2]
    found: dict[str, Any] = {name: [value[i] for i in places if i < len(value)] for name, value in lists.items()}
    if lists:
        found |= dict.fromkeys(counts, len(places))
    if isinstance(base.get("per_layer_config"), dict):
        other = next(iter(base["per_layer_config"].values()))
        found["per_layer_config"] = {"1": {name: OTHER_LAYER[name] for name in other if name in OTHER_LAYER}}
    return found


def set_special_tokens(config: PreTrainedConfig) -> None:
    """Put ids of special tokens that lie beyond the small vocabularies inside them, each at a place of its own."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", None) or {})]
    places: dict[str, int] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    for part in parts:
        if not isinstance(part, PreTrainedConfig):
            continue
        for name, value in list(part.to_dict().items()):
            value = value[0] if isinstance(value, list) and value and name == "eos_token_id" else value
            is_id = name.endswith(("token_id", "token_index")) and not is_fixed(type(part), name)
            if is_id and isinstance(value, int) and value >= 64:
                setattr(part, name, places.setdefault(name, VOCABULARY + 2 - len(places)))


def model_class(name: str) -> Any:
    """Return a class of transformers by its name."""
    found = getattr(transformers, name, None)
    if found is None:
        raise NotBuiltError(f"transformers has no {name}")
    return found


def config_of(family: Family, changes: Changes) -> PreTrainedConfig:
    """Return a configuration of the kind that the class takes: for a part of a model, that of the part."""
    config = tiny_config(family.model_type, changes)
    wanted = model_class(family.class_name).config_class
    if not isinstance(config, wanted):
        parts = [getattr(config, name, None) for name in type(config).sub_configs]
        config = next((part for part in parts if isinstance(part, wanted)), config)
    for name, value in CLASS_SETTINGS.get(family.class_name, {}).items():
        setattr(config, name, value)
    return config


def tiny_configs(family: Family) -> Iterator[PreTrainedConfig]:
    """Yield configurations that build models of at most MAX_PARAMETERS, from the smallest sizes on.

    Raises:
        NotBuiltError: none of LEVELS does.
    """
    cls, reason, tried = model_class(family.class_name), "", []
    for changes in LEVELS:
        try:
            config = config_of(family, changes)
            with torch.device("meta"):
                model = cls(config)
        except ImportError as error:
            raise NotBuiltError(first_line(error)) from error
        except Exception as error:
            reason = reason or first_line(error)
            continue
        count, document = sum(p.numel() for p in model.parameters()), config_of(family, changes).to_dict()
        if count > MAX_PARAMETERS:
            reason = reason or f"at {count / 1e6:.0f} million parameters it is too large"
        elif document not in tried:
            tried.append(document)
            yield config
    if not tried:
        raise NotBuiltError(reason)


def first_line(error: BaseException) -> str:
    """Return the kind of an error and its first sentence, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


def fill(model: nn.Module, seed: int = 0) -> None:
    """Give a model random weights of deviation .06, and norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():
                near = 1.0 if parameter.ndim == 1 and "norm" in name.lower() and name.endswith("weight") else 0.0
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.06 + near)
