"""Which tensor plays which role: read from configs/architectures, or judged by name and shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..io.safetensors_file import TensorInfo
from .model_class import OtherNames

ROLES = (
    "attention", "mlp", "expert", "vision", "audio", "projector", "linear",
    "router", "embedding", "head", "norm", "other",
)  # fmt: skip
"""What a tensor can be. The first seven are weights of linear layers or experts, which recipes usually code.
`embedding` is of tokens."""


@dataclass(frozen=True)
class Rule:
    """Tensors whose name `pattern` is found in have `role`; with `keep`, they are kept for that reason."""

    pattern: re.Pattern[str]
    role: str
    keep: str = ""


@dataclass(frozen=True)
class Stack:
    """Per-expert matrices that become one 3-D tensor, in the layout of the model class in memory.

    Attributes:
        pattern: finds `prefix` (what the stack's name begins with) and `expert` (its number) in a tensor's name.
        parts: what must fill `{part}` in the pattern, in the order their rows follow one another in an expert.
        name: last component of the stack's name.
    """

    pattern: str
    parts: tuple[str, ...]
    name: str

    def match(self, name: str, part: str) -> re.Match[str] | None:
        """Match a tensor's name as expert matrix `part`."""
        return _compile(self.pattern.replace("{part}", re.escape(part))).fullmatch(name)


@lru_cache(maxsize=None)
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@dataclass(frozen=True)
class Architecture:
    """The roles of a family's tensors.

    Attributes:
        name: of its file, or of the general rule.
        description: how roles were decided, for people.
        rules: the first that matches decides.
        stacks: per-expert matrices to stack.
    """

    name: str
    description: str
    rules: tuple[Rule, ...]
    stacks: tuple[Stack, ...] = ()

    def role(self, info: TensorInfo) -> Rule:
        """The rule that decides a tensor's role; a tensor that none knows is `other`."""
        for rule in self.rules:
            if rule.pattern.search(info.name):
                return rule
        return Rule(re.compile(""), "other", "no rule names it")


def configs_folder() -> Path:
    """The folder of configs: inside the installed package, or at the top of a source tree."""
    installed = Path(str(resources.files("hlwq_cli"))) / "configs"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[3] / "configs"


def load_architecture(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture file for a model's config, by its `model_type`; None where there is none."""
    model_type = str(config.get("model_type", ""))
    for path in sorted((configs_folder() / "architectures").glob("*.yaml")):
        document = yaml.safe_load(path.read_text())
        if model_type in document["model_types"]:
            return _from_document(path.stem, document)
    return None


def _from_document(name: str, document: dict[str, Any]) -> Architecture:
    rules = [Rule(re.compile(r["match"]), r["role"], r.get("keep", "")) for r in document["rules"]]
    unknown = {r.role for r in rules} - set(ROLES)
    if unknown:
        raise ValueError(f"{name}.yaml names unknown roles: {sorted(unknown)}")
    stacks = [Stack(s["match"], tuple(s["parts"]), s["name"]) for s in document.get("stacks", [])]
    return Architecture(name, f"architecture file {name}.yaml", tuple(rules), tuple(stacks))


_GENERAL_RULES = (
    (r"(^|\.)lm_head\.weight$", "head", ""),
    (r"(wpe|pos_?emb|position)[^/]*\.weight$", "other", "a position table"),
    (r"(embed|wte)[^/]*\.weight$", "embedding", ""),
    (r"(norm|ln_\d|ln_f|layernorm)[^.]*\.weight$", "norm", ""),
    (r"(router|(^|\.)gate|shared_expert_gate)(\.\w+)*\.weight$", "router", ""),
    (r"\.experts\.(gate_up_proj|down_proj)$", "expert", ""),
    (r"\.experts\.\d+\..*\.weight$", "expert", ""),
    (r"moe\.(input|output)_linear\.weight$", "expert", ""),
    (r"(vision|visual|image|vit)[^/]*\.weight$", "vision", ""),
    (r"(audio|speech)[^/]*\.weight$", "audio", ""),
    (r"\.weight$", "linear", ""),
)


def general_architecture(names: OtherNames | None = None) -> Architecture:
    """The rule for models without an architecture file.

    Args:
        names: the tensors that the model's class, where it is known, holds in anything but linear layers and experts;
            those that are no token embeddings are kept.
    """
    rules = [Rule(re.compile(pattern), role, keep) for pattern, role, keep in _GENERAL_RULES]
    if names is None:
        return Architecture("general", "general rule, by name and shape", tuple(rules))
    embeddings = Rule(_any_of(names.embeddings), "embedding")
    others = Rule(_any_of(names.others), "other", "not a linear layer of the model's class")
    return Architecture(
        "model class", "general rule, limited to the linear layers of the model's class", (embeddings, others, *rules)
    )


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Matches these names and nothing else."""
    return re.compile(rf"^(?:{'|'.join(re.escape(name) for name in sorted(names))})$")
