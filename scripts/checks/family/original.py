"""A tiny model as transformers saves it, and how it runs."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from scripts.checks.family.tiny_inputs import as_dtype, candidates
from scripts.checks.family.tiny_models import Family, NotBuiltError, fill, first_line, model_class, tiny_configs

NEW_TOKENS = 4
PATIENCE_SECONDS = 10
"""Processor time after which no other sizes of a class are tried."""
NO_INPUTS = "no inputs are known"
EXPORTS = {torch.bfloat16: "bf16", torch.float32: "f32"}
DTYPES = tuple(EXPORTS)

Tensors = list[torch.Tensor]


class NotRunError(Exception):
    """transformers cannot build, save, load or run the original."""


def run(model: Any, inputs: dict[str, torch.Tensor]) -> Tensors:
    """Return all tensors of a model's output, by position."""
    torch.manual_seed(0)
    with torch.inference_mode():
        out = model(**as_dtype(inputs, model.dtype))
    values = out.to_tuple() if hasattr(out, "to_tuple") else out
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def generate(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a few greedy tokens."""
    torch.manual_seed(0)
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    if "input_ids" in given:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    out = model.generate(**as_dtype(given, model.dtype), **settings)
    tokens: torch.Tensor = out if isinstance(out, torch.Tensor) else out.sequences
    return tokens


def relative_difference(ours: Tensors, theirs: Tensors) -> float:
    """Return the largest difference over the largest value, in float32; infinite where shapes or NaNs differ."""
    if len(ours) != len(theirs):
        return float("inf")
    largest = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        x, y = a.detach().double(), b.detach().double()
        finite = y.isfinite()
        if not torch.equal(x.isfinite(), finite) or not torch.equal(x[~finite].isnan(), y[~finite].isnan()):
            return float("inf")
        if finite.any():
            x, y = x[finite], y[finite]
            largest = max(largest, float((x - y).abs().max() / y.abs().max().clamp_min(1e-30)))
    return largest


@dataclass
class Original:
    """A model as transformers saved it, and how it runs."""

    cls: Any
    source: Path
    dtype: torch.dtype
    model: Any
    inputs: dict[str, torch.Tensor]
    generates: bool

    def as_float32(self) -> Original:
        """Return the same model in float32."""
        model = self.cls.from_pretrained(str(self.source), dtype=torch.float32).eval()
        return replace(self, dtype=torch.float32, model=model)

    def load(self, folder: Path) -> Any:
        """Load a checkpoint by the class itself."""
        return self.cls.from_pretrained(str(folder), dtype=self.dtype).eval()


def make_original(family: Family, source: Path, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Original:
    """Build a tiny model, save it, and find the first of some types in which it runs.

    Raises:
        NotRunError: transformers fails to build, save, load or run it, or does not load what it saved.
    """
    reason, begin = "", time.process_time()
    try:
        for config in tiny_configs(family):
            try:
                return save_original(family, config, source, dtypes)
            except NotRunError as error:
                reason = reason or str(error)
                shutil.rmtree(source, ignore_errors=True)
            if NO_INPUTS in reason or time.process_time() - begin > PATIENCE_SECONDS:
                break
    except NotBuiltError as error:
        raise NotRunError(f"is not built: {error}") from error
    raise NotRunError(reason)


def save_original(family: Family, config: Any, source: Path, dtypes: tuple[torch.dtype, ...]) -> Original:
    """Save a model of one configuration, and find inputs that it takes; see `make_original`."""
    cls = model_class(family.class_name)
    try:
        torch.manual_seed(0)
        model = cls(config).eval()
        fill(model)
        model.to(torch.bfloat16).save_pretrained(source)
    except Exception as error:
        raise NotRunError(f"is not saved: {first_line(error)}") from error
    reason = ""
    for dtype in dtypes:
        try:
            loaded = cls.from_pretrained(str(source), dtype=dtype).eval()
        except Exception as error:
            raise NotRunError(f"transformers does not load what it saved: {first_line(error)}") from error
        if lost := first_lost(loaded, cls.from_pretrained(str(source), dtype=dtype)):
            raise NotRunError(f"transformers loads {lost} with other values every time")
        inputs, failure = find_inputs(loaded)
        if inputs is not None:
            return Original(cls, source, dtype, loaded, inputs, can_generate(loaded, inputs))
        reason = reason or failure
    raise NotRunError(f"does not run: {reason}")


def first_lost(first: Any, second: Any) -> str:
    """Return the first parameter that two loads fill with different values: it was not in what was saved."""
    found = dict(second.named_parameters())
    return next((name for name, value in first.named_parameters() if not torch.equal(found[name], value)), "")


def find_inputs(model: Any) -> tuple[dict[str, torch.Tensor] | None, str]:
    """Return inputs that a model takes and answers alike twice; else None and the first error."""
    failure = ""
    for inputs in candidates(model):
        try:
            first, second = run(model, inputs), run(model, inputs)
        except Exception as error:
            failure = failure or first_line(error)
            continue
        if first and relative_difference(first, second) == 0.0:
            return inputs, ""
        failure = failure or "two runs give different outputs"
    return None, failure or NO_INPUTS


def can_generate(model: Any, inputs: dict[str, torch.Tensor]) -> bool:
    """Return whether a model generates, and the same tokens twice."""
    try:
        return bool(model.can_generate()) and torch.equal(generate(model, inputs), generate(model, inputs))
    except Exception:
        return False
