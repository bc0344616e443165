"""Which tensor plays which role: read from configs/architectures, or judged by name and shape."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..io import TensorInfo

CODED_ROLES = ("attention", "mlp", "expert", "vision", "audio", "projector", "linear")
"""Roles of weights of linear layers and experts."""
ROLES = (*CODED_ROLES, "router", "embedding", "head", "norm", "other")
"""What a tensor can be. The first seven are weights of linear layers or experts, which recipes usually code.
`embedding` is of tokens."""


@dataclass(frozen=True)
class Rule:
    """Tensors with `pattern` in their names have `role`. With `keep`, they are kept, and `keep` is the reason."""

    pattern: re.Pattern[str]
    role: str
    keep: str = ""
    is_default: bool = False


@dataclass(frozen=True)
class Architecture:
    """The roles of a family's tensors.

    Attributes:
        name: of its file, or of the general rule.
        description: how roles were decided, for people.
        rules: the first that matches decides.
        verified: digests of checkpoints whose plan by these rules is the one by the model's class; see `layout_digest`.
    """

    name: str
    description: str
    rules: tuple[Rule, ...]
    verified: frozenset[str] = frozenset()

    def role(self, info: TensorInfo) -> Rule:
        """Return the rule that decides a tensor's role. A tensor that no rule matches is `other`."""
        for rule in self.rules:
            if rule.pattern.search(info.name):
                return rule
        return Rule(re.compile(""), "other", "no rule names it", is_default=True)


def layout_digest(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """Return a hash of a model's class, the sizes in its config, and the names and shapes of its tensors.

    Two checkpoints with the same digest get the same plan. The architecture files list the digests of a few large
    models, so that their plan needs no import of transformers, which takes seconds. A test compares these plans with
    those by the model's class.
    """
    shapes = sorted([name, list(info.shape)] for name, info in tensors.items())
    content = json.dumps([config.get("architectures"), _sizes(config), shapes], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide shapes, of a config and its parts."""
    words = ("num_", "hidden_size", "intermediate_size", "head_dim", "layer_types", "vocab_size", "k_eq_v", "tie_")
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config"):
            found[key] = _sizes(value)
        elif any(word in key for word in words):
            found[key] = value
    return found


def configs_folder() -> Path:
    """Return the folder of configs: inside the installed package, or at the top of a source tree."""
    installed = Path(str(resources.files("hlwq_cli"))) / "configs"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[3] / "configs"


def load_architecture(config: Mapping[str, Any]) -> Architecture | None:
    """Return the architecture file for the `model_type` of a model's config, or None if there is none."""
    model_type = str(config.get("model_type", ""))
    for path in sorted((configs_folder() / "architectures").glob("*.yaml")):
        document = _read(path)
        if model_type in document["model_types"]:
            return _from_document(path.stem, document)
    return None


@cache
def _read(path: Path) -> dict[str, Any]:
    """Return a file's content. It is read once, because reading takes as long as the plan of a small model."""
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def _from_document(name: str, document: dict[str, Any]) -> Architecture:
    rules = [Rule(re.compile(r["match"]), r["role"], r.get("keep", "")) for r in document["rules"]]
    unknown = {r.role for r in rules} - set(ROLES)
    if unknown:
        raise ValueError(f"{name}.yaml names unknown roles: {sorted(unknown)}")
    verified = frozenset(document.get("verified", []))
    return Architecture(name, f"architecture file {name}.yaml", tuple(rules), verified)


_GENERAL_RULES = (
    (r"(^|\.)lm_head\.weight$", "head", ""),
    (r"(wpe|pos_?emb|position)[^.]*\.weight$", "other", "a position table"),
    (r"(embed|wte)[^.]*\.weight$", "embedding", ""),
    (r"(norm|ln_\d|ln_f|layernorm)[^.]*\.weight$", "norm", ""),
    (r"(router|(^|\.)gate|shared_expert_gate)(\.\w+)*\.weight$", "router", ""),
    (r"\.experts\.(gate_up_proj|down_proj)$", "expert", ""),
    (r"\.experts\.\d+\..*\.weight$", "expert", ""),
    (r"moe\.(input|output)_linear\.weight$", "expert", ""),
    (r"(^|\.)(vision|visual|image|vit)[^.]*\..*weight$", "vision", ""),
    (r"(^|\.)(audio|speech)[^.]*\..*weight$", "audio", ""),
    (r"\.weight$", "linear", ""),
)


def general_architecture() -> Architecture:
    """Return the rule for models without an architecture file."""
    rules = tuple(Rule(re.compile(pattern), role, keep) for pattern, role, keep in _GENERAL_RULES)
    return Architecture("general", "general rule, by name and shape", rules)
