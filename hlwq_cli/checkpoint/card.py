"""The model card of a result: front matter that the Hub understands, and what was done, in plain words."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import yaml

from .. import __version__
from .hub import is_repo_id
from .manifest import KeptRecord, Manifest, TensorRecord
from .plan import Plan
from .source import Source

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")


def model_card(plan: Plan, manifest: Manifest, base_model: str | None = None) -> str:
    """The README.md of a coded checkpoint.

    Args:
        plan: the run's plan.
        manifest: what it wrote; files other than weights may be missing.
        base_model: Hub id of the origin of a local folder.
    """
    base = base_model or _base_model(plan.source)
    title = base.rpartition("/")[2] if base else str(manifest.source["id"]).rpartition("/")[2]
    front = yaml.safe_dump(_front_matter(plan, base), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n".join(_body(plan, manifest, title, base)) + "\n"


def _base_model(source: Source) -> str | None:
    if source.repo is not None:
        return source.id
    named = str(source.config.get("_name_or_path", ""))
    return named if is_repo_id(named) else None


def _front_matter(plan: Plan, base: str | None) -> dict[str, Any]:
    inherited = source_front_matter(plan.source)
    front: dict[str, Any] = {key: inherited[key] for key in _INHERITED if key in inherited}
    front.setdefault("pipeline_tag", pipeline_tag(plan.source.config))
    if base:
        front["base_model"] = base
        front["base_model_relation"] = "quantized"
    front["library_name"] = "transformers"
    front["tags"] = ["hlwq", "quantized", f"{plan.recipe.scheme.bits}-bit", "hadamard", "lloyd-max"]
    front["quantized_by"] = "hlwq"
    return front


def source_front_matter(source: Source) -> dict[str, Any]:
    """The YAML block that opens the source's own card, or nothing."""
    if "README.md" not in source.companions:
        return {}
    match = _FRONT_MATTER.match(source.path("README.md").read_text(errors="replace"))
    try:
        document = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return document if isinstance(document, dict) else {}


def pipeline_tag(config: dict[str, Any]) -> str:
    """The Hub's task name for a model's class."""
    name = (config.get("architectures") or [""])[0]
    if "vision_config" in config and name.endswith(("ForConditionalGeneration", "ForImageTextToText")):
        return "image-text-to-text"
    if name.endswith(("ForCausalLM", "ForConditionalGeneration")):
        return "text-generation"
    return "feature-extraction"


def _body(plan: Plan, manifest: Manifest, title: str, base: str | None) -> list[str]:
    bits, total = plan.recipe.scheme.bits, manifest.coded_bytes + manifest.kept_bytes
    origin = f"[{base}](https://huggingface.co/{base})" if base else f"`{manifest.source['id']}`"
    revision = f" at revision `{plan.source.revision}`" if plan.source.revision else ""
    scheme = plan.recipe.scheme
    return [
        f"# {title}, {bits}-bit HLWQ",
        "",
        f"{origin}{revision}, with the weights of its linear layers"
        f"{' and experts' if any(t.role == 'expert' for t in manifest.coded) else ''} in packed {bits}-bit codes: "
        f"{_size(total)} instead of {_size(manifest.source_bytes)}.",
        "",
        "## Load",
        "",
        "This is a safetensors checkpoint. `pip install hlwq`, then `hlwq export FOLDER PLAIN --to bf16` writes a plain "
        "checkpoint that any tool loads.",
        "",
        "## What was coded",
        "",
        "| role | tensors | matrices | bits | size | relative squared error |",
        "|---|---|---|---|---|---|",
        *_coded_rows(manifest.coded),
        "",
        f"{manifest.bits_per_weight:.3f} bits per weight, every stored bit of coded tensors counted.",
        "",
        "## What stayed exact",
        "",
        "| role | tensors | size |",
        "|---|---|---|",
        *_kept_rows(manifest.kept),
        "",
        "## How it was made",
        "",
        f"`hlwq quantize --bits {bits} --recipe {plan.recipe.name}`, version {__version__}. Each block of {scheme.block_size} "
        "weights is rotated by a Walsh-Hadamard transform, which makes it nearly Gaussian, and coded with the Lloyd-Max "
        f"centroids of a normal; scales are {scheme.scale}{', searched' if scheme.search else ''}. "
        "Hashes of every tensor are in `hlwq_manifest.json`; `hlwq inspect FOLDER --verify` checks them.",
        "",
        "## References",
        "",
        "- HIGGS, of which this is the scalar case: [arXiv 2411.17525](https://arxiv.org/abs/2411.17525).",
        "- PolarQuant/HLWQ: [arXiv 2603.29078](https://arxiv.org/abs/2603.29078), withdrawn by its author in v2.",
    ]


def _coded_rows(records: tuple[TensorRecord, ...]) -> list[str]:
    groups: dict[tuple[str, int], list[TensorRecord]] = defaultdict(list)
    for record in records:
        groups[record.role, record.bits].append(record)
    return [
        f"| {role} | {len(group)} | {sum(t.shape[0] if len(t.shape) == 3 else 1 for t in group)} | {bits} "
        f"| {_size(sum(t.bytes for t in group))} | {min(t.nmse for t in group):.2e} to {max(t.nmse for t in group):.2e} |"
        for (role, bits), group in groups.items()
    ]


def _kept_rows(records: tuple[KeptRecord, ...]) -> list[str]:
    groups: dict[str, list[KeptRecord]] = defaultdict(list)
    for record in records:
        groups[record.role].append(record)
    return [f"| {role} | {len(group)} | {_size(sum(t.bytes for t in group))} |" for role, group in groups.items()]


def _size(n: int) -> str:
    """Decimal units, as disks and the Hub count."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.2f} {unit}"
    return f"{n} B"
