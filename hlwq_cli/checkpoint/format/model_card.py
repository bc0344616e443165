"""The model card of a result: front matter for the Hub, and a description of what was coded and how.

It is made only from the files of the result, so that it can be written again at any time.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...sizes import format_size
from ..io import is_repo_id
from .calibration_text import calibration_options, describe_calibration
from .card_head import INHERITED, front_matter, is_text, read_card
from .manifest import Manifest
from .manifest_entries import KeptRecord, TensorRecord
from .model_kind import model_kind
from .shards import DEFAULT_SHARD_BYTES

NOTES_MARK = "<!-- What stands below this line is yours: it is kept when the card is made again. -->"


def model_card(
    folder: Path,
    config: Mapping[str, Any],
    manifest: Manifest,
    *,
    repo: str | None = None,
    inherited: Mapping[str, Any] = {},
    fidelity: str = "",
) -> str:
    """Return the README.md of a coded checkpoint.

    Args:
        folder: folder of the checkpoint. Its README.source.md gives licence and language, its README.md the owner's
            notes.
        config: the checkpoint's config.json.
        manifest: the checkpoint's manifest; files other than weights may be missing.
        repo: Hub id to load the checkpoint from.
        inherited: front matter of the base model, used where the folder's own files state nothing.
        fidelity: a section of measured figures, or "".
    """
    base = base_model(manifest, config)
    title = base.rpartition("/")[2] if base else str(manifest.source["id"]).rpartition("/")[2]
    known = {**inherited, **front_matter(folder / "README.md"), **front_matter(folder / "README.source.md")}
    front = yaml.safe_dump(_front_matter(known, config, base), sort_keys=False, allow_unicode=True)
    body = _body(config, manifest, title, base, repo or "FOLDER", fidelity)
    text = f"---\n{front}---\n{body}\n{NOTES_MARK}\n{_notes(folder / 'README.md')}"
    return text.encode(errors="replace").decode()  # names may hold what UTF-8 cannot


def base_model(manifest: Manifest, config: Mapping[str, Any]) -> str | None:
    """Return the Hub id of the model that a checkpoint was made from, or None if it is unknown."""
    named = (manifest.fingerprint.get("base_model"), manifest.source["id"], config.get("_name_or_path"))
    return next((n for n in named if isinstance(n, str) and is_repo_id(n)), None)


def _notes(card: Path) -> str:
    return read_card(card).partition(NOTES_MARK)[2].lstrip("\n")


def _front_matter(known: Mapping[str, Any], config: Mapping[str, Any], base: str | None) -> dict[str, Any]:
    front: dict[str, Any] = {key: known[key] for key in INHERITED if is_text(known.get(key))}
    front.setdefault("pipeline_tag", model_kind(config).pipeline_tag)
    if base:
        front["base_model"] = base
        front["base_model_relation"] = "quantized"
    front["library_name"] = "transformers"
    bits = config["quantization_config"]["bits"]
    front["tags"] = ["hlwq", "quantized", f"{bits}-bit", "hadamard", "lloyd-max"]
    front["quantized_by"] = "hlwq"
    return front


_COLUMNS = ("role", "tensors", "matrices", "bits", "size", "relative squared error")


_BODY = """
# {title}, {bits}-bit HLWQ

{origin}, with the weights of its {what} in packed {bits}-bit codes: {after} instead of {before}.

| | size | bits per weight |
|---|---|---|
| coded | {coded_size} | {bpw:.3f}, every stored bit counted |
| kept exact | {kept_size} | as in the source |
| in all | {after} | |
| the source | {before} | |

## Load

    import hlwq_cli  # first: transformers finds no plugin by itself
    from transformers import {auto_class}
    model = {auto_class}.from_pretrained("{where}")

Safetensors only; nothing in it needs remote code. `hlwq export {where} PLAIN --to bf16` writes a plain checkpoint that
any tool loads.
{fidelity}
## What was coded

{coded_header}
{coded}

## What stayed exact

| role | tensors | size |
|---|---|---|
{kept}

## How it was made

    {command}

hlwq {version}{revision}. Each block of {block} weights is rotated by a
Walsh-Hadamard transform, which makes it nearly Gaussian, and coded with the Lloyd-Max centroids of a normal; scales are
{scales}.{calibration} Hashes of every tensor are in `hlwq_manifest.json`; `hlwq inspect {where} --verify` checks them.

## References

- HIGGS, of which this is the scalar case: [arXiv 2411.17525](https://arxiv.org/abs/2411.17525).
- PolarQuant/HLWQ: [arXiv 2603.29078](https://arxiv.org/abs/2603.29078), withdrawn by its author in v2.
"""


def _body(
    config: Mapping[str, Any], manifest: Manifest, title: str, base: str | None, where: str, fidelity: str
) -> str:
    settings, revision = config["quantization_config"], manifest.source["revision"]
    recipe = manifest.fingerprint.get("recipe", {})
    return _BODY.format(
        title=title,
        where=where,
        fidelity=f"\n{fidelity}" if fidelity else "",
        auto_class=model_kind(config).loader,
        bits=settings["bits"],
        origin=f"[{base}](https://huggingface.co/{base})" if base else f"`{manifest.source['id']}`",
        what=_kinds(manifest.coded),
        after=format_size(manifest.output_bytes),
        before=format_size(manifest.source_bytes),
        coded_size=format_size(manifest.coded_bytes),
        kept_size=format_size(manifest.kept_bytes),
        coded_header=_header((*_COLUMNS, "of the outputs") if manifest.calibration else _COLUMNS),
        coded="\n".join(_coded_rows(manifest.coded, manifest.calibration is not None)),
        bpw=manifest.bits_per_weight,
        kept="\n".join(_kept_rows(manifest.kept)),
        command=quantize_command(manifest),
        version=manifest.tool["version"],
        revision=f", from revision `{revision}`" if revision else "",
        block=settings["block_size"],
        calibration=_calibration(manifest),
        scales=f"{settings['scale']}{', searched' if recipe.get('search') else ''}",
    )


def _kinds(records: tuple[TensorRecord, ...]) -> str:
    """Return what was coded, as a phrase."""
    roles = {t.role for t in records}
    named = [name for role, name in (("expert", "experts"), ("embedding", "embeddings")) if role in roles]
    return " and ".join([", ".join(["linear layers", *named[:-1]]), *named[-1:]])


def _calibration(manifest: Manifest) -> str:
    """Return what the weights were calibrated on, and how many were not, as sentences."""
    if manifest.calibration is None:
        return ""
    text = (
        f" Calibrated on {describe_calibration(manifest.calibration)}: later columns make up for the errors of earlier "
        "ones, weighed by the moments of the layer's inputs (GPTQ, [arXiv 2210.17323](https://arxiv.org/abs/2210.17323)"
        ", in the rotated basis)."
    )
    without = manifest.calibration.get("without_moments")
    return f"{text} {len(without)} coded tensors had no moments." if without else text


def quantize_command(manifest: Manifest) -> str:
    """Return the command that makes the same bytes again from the same source."""
    recipe = manifest.fingerprint.get("recipe", {})
    shard_bytes = manifest.fingerprint.get("max_shard_bytes", DEFAULT_SHARD_BYTES)
    words = ["hlwq", "quantize", str(manifest.source["id"]), "--bits", str(recipe.get("bits", ""))]
    if manifest.source["revision"]:
        words += ["--revision", manifest.source["revision"]]
    if recipe.get("recipe", "default") != "default":
        words += ["--recipe", str(recipe["recipe"])]
    if recipe.get("search") is False:
        words += ["--effort", "fast"]
    for option in ("tensor", "include", "exclude"):
        for value in recipe.get(option, []):
            words += [f"--{option}", str(value)]
    if manifest.calibration is not None:
        words += calibration_options(manifest.calibration)
    if shard_bytes != DEFAULT_SHARD_BYTES:
        words += ["--max-shard-size", str(shard_bytes)]
    return shlex.join(words)


def _coded_rows(records: tuple[TensorRecord, ...], is_calibrated: bool) -> list[str]:
    groups: dict[tuple[str, int], list[TensorRecord]] = defaultdict(list)
    for record in records:
        groups[record.role, record.bits].append(record)
    rows = []
    for (role, bits), group in groups.items():
        size, matrices = format_size(sum(t.bytes for t in group)), sum(t.matrices for t in group)
        spread = _spread([t.nmse for t in group])
        loss = f" {_spread([t.loss for t in group if t.loss is not None])} |" if is_calibrated else ""
        rows.append(f"| {role} | {len(group)} | {matrices} | {bits} | {size} | {spread} |{loss}")
    return rows


def _header(columns: tuple[str, ...]) -> str:
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _spread(errors: list[float]) -> str:
    return f"{min(errors):.2e} to {max(errors):.2e}" if errors else ""


def _kept_rows(records: tuple[KeptRecord, ...]) -> list[str]:
    groups: dict[str, list[KeptRecord]] = defaultdict(list)
    for record in records:
        groups[record.role].append(record)
    return [f"| {role} | {len(group)} | {format_size(sum(t.bytes for t in group))} |" for role, group in groups.items()]
