"""The steps that one class goes through, and its verdict."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hlwq_cli.checkpoint import Manifest, export, load_recipe, open_coded, quantize, verify
from hlwq_cli.errors import HlwqError
from scripts.checks.family.original import DTYPES, EXPORTS, Original, generate, make_original, relative_difference, run
from scripts.checks.family.tiny_models import Family, first_line

BITS = 6
MADE = "original-made"
"""Name of a file that tells that what follows is the work of this project."""
LARGEST_DIFFERENCE = 1e-5
BF16_ROUNDING = 0.05
"""A smaller difference in bf16 can be rounding. It is decided in float32, with weights exported to float32."""
RANKED = frozenset({"Deimv2Model"})
"""Classes that keep the best of many places: one bit of rounding picks others, so float32 decides any difference."""
LARGEST_WEIGHT_ERROR = 0.08
"""Relative error of a matrix after 6 bits. Gaussian weights have .02; another matrix in its place has 1.4."""


@dataclass(frozen=True)
class Row:
    """What became of one class.

    Attributes:
        family: the class.
        verdict: see families.py.
        dtype: in which the models ran.
        coded_share: coded weights over the weights of all matrices, embeddings and heads included.
        kept: name of the largest kept matrix that is neither embeddings nor a head.
        kept_reason: why it is kept.
        loads: whether the coded checkpoint loads.
        difference: largest difference of an output from the exported model's, over the largest output.
        generates: "yes", "no", or "-" where the original does not.
        seconds: what all steps took.
        measured: the day, as in 2026-01-31.
    """

    family: Family
    verdict: str
    dtype: str = ""
    coded_share: float | None = None
    kept: str = ""
    kept_reason: str = ""
    loads: bool = False
    difference: float | None = None
    generates: str = "-"
    seconds: float = 0.0
    measured: str = ""

    @property
    def failed(self) -> bool:
        """Return whether this is neither equal nor refused."""
        return self.verdict.startswith(("WRONG", "error"))


def shares(manifest: Manifest) -> tuple[float, str, str]:
    """Return the coded share of the matrices' weights, and the largest kept matrix of layers with its reason."""
    coded = sum(t.matrices * t.shape[-1] * t.shape[-2] for t in manifest.coded)
    kept = [(torch.Size(k.shape).numel(), k) for k in manifest.kept if len(k.shape) >= 2]
    total = coded + sum(weights for weights, _ in kept)
    layers = [(weights, k) for weights, k in kept if k.role not in ("embedding", "embeddings", "head")]
    largest = max(layers, key=lambda entry: entry[0], default=(0, None))[1]
    share = coded / total if total else 0.0
    return (share, largest.name, largest.reason) if largest is not None else (share, "", "")


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Return whether two tensors are equal once rounded to bf16, which is all that an export holds."""
    return torch.equal(ours.detach().to(torch.bfloat16), theirs.detach().to(torch.bfloat16))


def other_weight(coded: Any, plain: Any) -> str:
    """Return the first parameter of which the coded model shows other values than the exported one."""
    for name, parameter in plain.named_parameters():
        path, _, last = name.rpartition(".")
        try:
            value = getattr(coded.get_submodule(path), last)
        except AttributeError:
            continue
        if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
            continue
        if not (same(value, parameter) or (value.ndim > 1 and same(value.mT, parameter))):
            return str(name)
    return ""


def far_weight(original: Any, plain: Any) -> str:
    """Return the first parameter that is further from the original's than coding accounts for."""
    found = dict(plain.named_parameters())
    for name, parameter in original.named_parameters():
        if name not in found:
            return str(name)
        expected = parameter.detach().double()
        error = (found[name].detach().double() - expected).norm() / expected.norm().clamp_min(1e-30)
        if not error <= LARGEST_WEIGHT_ERROR:
            return str(name)
    return ""


def compare(row: Row, original: Original, coded: Path, plain: Path) -> Row:
    """Load the codes twice and the exported weights once, and compare them."""
    try:
        twin = original.load(plain)
    except Exception as error:
        return replace(row, verdict=f"error: the exported checkpoint does not load: {first_line(error)}")
    try:
        model, again = original.load(coded), original.load(coded)
    except Exception as error:
        return replace(row, verdict=f"error: does not load: {first_line(error)}")
    row = replace(row, loads=True)
    try:
        expected, found = run(twin, original.inputs), run(model, original.inputs)
        other = run(again, original.inputs)
    except Exception as error:
        return replace(row, verdict=f"error: does not run: {first_line(error)}")
    row = replace(row, difference=relative_difference(found, expected))
    assert row.difference is not None
    if not row.difference <= LARGEST_DIFFERENCE:
        name = other_weight(model, twin)
        where = f"; {name} differs" if name else ""
        return replace(row, verdict=f"WRONG: outputs differ by {row.difference:.2g}{where}")
    if relative_difference(other, found) > LARGEST_DIFFERENCE:
        return replace(row, verdict="WRONG: loaded again, the outputs are others")
    if name := other_weight(model, twin):
        return replace(row, verdict=f"WRONG: {name} differs from the exported weight")
    if name := far_weight(original.model, twin):
        return replace(row, verdict=f"WRONG: exported {name} is far from the original")
    return compare_generated(row, original, model, twin)


def compare_generated(row: Row, original: Original, model: Any, twin: Any) -> Row:
    """Compare generated tokens, where the original generates."""
    if not original.generates:
        return replace(row, verdict="equal")
    try:
        same = torch.equal(generate(model, original.inputs), generate(twin, original.inputs))
    except Exception as error:
        return replace(row, generates="no", verdict=f"error: does not generate: {first_line(error)}")
    if not same:
        return replace(row, generates="no", verdict="WRONG: generates other tokens")
    return replace(row, generates="yes", verdict="equal")


def check_family(
    family: Family,
    folder: Path,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    damage: Callable[[Path], None] | None = None,
) -> Row:
    """Take one class through all steps.

    Args:
        family: the class.
        folder: an empty one, for the checkpoints.
        dtypes: to run in, tried in turn.
        damage: changes the coded checkpoint before it is loaded, to show that this check finds it.

    Raises:
        NotRunError: transformers cannot run the original.
    """
    begin = time.monotonic()
    original = make_original(family, folder / "source", dtypes)
    (folder / MADE).touch()
    row = steps(Row(family, "error", dtype=EXPORTS[original.dtype]), original, folder, damage)
    if is_rounding(row) and torch.float32 in dtypes:
        for name in ("coded", "plain"):
            shutil.rmtree(folder / name)
        row = steps(replace(row, dtype="f32"), original.as_float32(), folder, damage)
    return replace(row, seconds=round(time.monotonic() - begin, 1))


def is_rounding(row: Row) -> bool:
    """Return whether rounding to bf16 explains a difference: it is small, or of a class that ranks what it finds."""
    limit = float("inf") if row.family.class_name in RANKED else BF16_ROUNDING
    small = row.difference is not None and LARGEST_DIFFERENCE < row.difference < limit
    return small and row.dtype == "bf16" and row.verdict.startswith("WRONG")


def steps(row: Row, original: Original, folder: Path, damage: Callable[[Path], None] | None) -> Row:
    """Quantize, verify, export and compare."""
    coded, plain = folder / "coded", folder / "plain"
    try:
        quantize(str(original.source), coded, load_recipe(bits=BITS), threads=1)
    except HlwqError as error:
        if coded.exists():
            return replace(row, verdict=f"error: refused after work began: {error.what}")
        return replace(row, verdict=f"refused: {error.what} (exit {error.exit_code})")
    except Exception as error:
        return replace(row, verdict=f"error: quantize: {first_line(error)}")
    try:
        with closing(open_coded(coded)) as checkpoint:
            share, kept, reason = shares(checkpoint.manifest)
            row = replace(row, coded_share=share, kept=kept, kept_reason=reason)
            problems = verify(checkpoint).problems
        if problems:
            return replace(row, verdict=f"error: verify: {problems[0]}")
        export(coded, plain, EXPORTS[original.dtype])
    except Exception as error:
        return replace(row, verdict=f"error: verify or export: {first_line(error)}")
    if damage is not None:
        damage(coded)
    return compare(row, original, coded, plain)
