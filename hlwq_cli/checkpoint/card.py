"""The model card of a result: front matter that the Hub understands, and what was done, in plain words."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import yaml

from .. import __version__
from ..sizes import format_size
from .hub import is_repo_id
from .manifest import Manifest
from .plan import Plan
from .records import KeptRecord, TensorRecord
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
    return f"---\n{front}---\n{_body(plan, manifest, title, base)}"


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
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    if "vision_config" in config and name.endswith(("ForConditionalGeneration", "ForImageTextToText")):
        return "image-text-to-text"
    if name.endswith(("ForCausalLM", "ForConditionalGeneration")):
        return "text-generation"
    return "feature-extraction"


_AUTO_CLASSES = {"image-text-to-text": "AutoModelForImageTextToText", "text-generation": "AutoModelForCausalLM"}

_BODY = """
# {title}, {bits}-bit HLWQ

{origin}, with the weights of its {what} in packed {bits}-bit codes: {after} instead of {before}.

## Load

    import hlwq_cli  # first: transformers finds no plugin by itself
    from transformers import {auto_class}
    model = {auto_class}.from_pretrained("FOLDER")

Safetensors only; nothing in it needs remote code. `hlwq export FOLDER PLAIN --to bf16` writes a plain checkpoint that
any tool loads.

## What was coded

| role | tensors | matrices | bits | size | relative squared error |
|---|---|---|---|---|---|
{coded}

{bpw:.3f} bits per weight, every stored bit of coded tensors counted.

## What stayed exact

| role | tensors | size |
|---|---|---|
{kept}

## How it was made

`hlwq quantize --bits {bits} --recipe {recipe}`, version {version}. Each block of {block} weights is rotated by a
Walsh-Hadamard transform, which makes it nearly Gaussian, and coded with the Lloyd-Max centroids of a normal; scales are
{scales}. Hashes of every tensor are in `hlwq_manifest.json`; `hlwq inspect FOLDER --verify` checks them.

## References

- HIGGS, of which this is the scalar case: [arXiv 2411.17525](https://arxiv.org/abs/2411.17525).
- PolarQuant/HLWQ: [arXiv 2603.29078](https://arxiv.org/abs/2603.29078), withdrawn by its author in v2.
"""


def _body(plan: Plan, manifest: Manifest, title: str, base: str | None) -> str:
    scheme = plan.recipe.scheme
    origin = f"[{base}](https://huggingface.co/{base})" if base else f"`{manifest.source['id']}`"
    return _BODY.format(
        title=title,
        auto_class=_AUTO_CLASSES.get(pipeline_tag(plan.source.config), "AutoModel"),
        bits=scheme.bits,
        origin=origin + (f" at revision `{plan.source.revision}`" if plan.source.revision else ""),
        what="linear layers and experts" if any(t.role == "expert" for t in manifest.coded) else "linear layers",
        after=format_size(manifest.coded_bytes + manifest.kept_bytes),
        before=format_size(manifest.source_bytes),
        coded="\n".join(_coded_rows(manifest.coded)),
        bpw=manifest.bits_per_weight,
        kept="\n".join(_kept_rows(manifest.kept)),
        recipe=plan.recipe.name,
        version=__version__,
        block=scheme.block_size,
        scales=f"{scheme.scale}{', searched' if scheme.search else ''}",
    )


def _coded_rows(records: tuple[TensorRecord, ...]) -> list[str]:
    groups: dict[tuple[str, int], list[TensorRecord]] = defaultdict(list)
    for record in records:
        groups[record.role, record.bits].append(record)
    rows = []
    for (role, bits), group in groups.items():
        errors = [t.nmse for t in group]
        size, matrices = format_size(sum(t.bytes for t in group)), sum(t.matrices for t in group)
        spread = f"{min(errors):.2e} to {max(errors):.2e}"
        rows.append(f"| {role} | {len(group)} | {matrices} | {bits} | {size} | {spread} |")
    return rows


def _kept_rows(records: tuple[KeptRecord, ...]) -> list[str]:
    groups: dict[str, list[KeptRecord]] = defaultdict(list)
    for record in records:
        groups[record.role].append(record)
    return [f"| {role} | {len(group)} | {format_size(sum(t.bytes for t in group))} |" for role, group in groups.items()]
