"""How much of a model a plan codes: nothing is an error, less than half of its matrix weights is a warning."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from ...errors import GateMissedError
from .architecture import CODED_ROLES
from .plan import Plan
from .planned import CodedTensor, KeptTensor, PlannedTensor

_MAX_NAMED = 3
_MIN_FRACTION = 0.5
_BY_USER = ("excluded", "not included", "kept by --tensor")


def check_coded(plan: Plan) -> None:
    """Raise GateMissedError if a plan codes nothing, with the reasons that keep most weights."""
    if plan.coded:
        return
    kept = _kept_matrices(plan)
    if not kept:
        raise GateMissedError(
            f"Nothing would be coded: {plan.source.id} has no matrix.", "Give a checkpoint with linear layers."
        )
    reasons = [f"{reason} ({_examples(tensors)})" for reason, tensors in _by_reason(kept)[:_MAX_NAMED]]
    raise GateMissedError(f"Nothing would be coded: {'; '.join(reasons)}.", _hint(kept))


def plan_warnings(plan: Plan) -> tuple[str, ...]:
    """Return what a user should know of a plan before it is run, one sentence each.

    These are a retired recipe, files of weights that are left out, a plan that was not compared with the model's class,
    tensors that no module takes, matrices that are kept although the user gave them a width, and the largest kept
    matrices if less than half of all weights in matrices are coded. A head that is tied to the embeddings counts as a
    matrix of its own, because the model multiplies by it.
    """
    return (
        *plan.recipe.warnings,
        *plan.source.warnings,
        *_class_warnings(plan),
        *_request_warnings(plan),
        *_coverage_warnings(plan),
    )


def _class_warnings(plan: Plan) -> list[str]:
    found = []
    if plan.unchecked and plan.source.config.get("architectures"):
        found.append(f"Planned by names alone, as {plan.unchecked}: nobody checked that the result loads.")
    if plan.unused:
        more = f" and {len(plan.unused) - _MAX_NAMED} more" if len(plan.unused) > _MAX_NAMED else ""
        found.append(f"No module takes {', '.join(plan.unused[:_MAX_NAMED])}{more}: kept as in the source.")
    return found


def _request_warnings(plan: Plan) -> list[str]:
    """Name the matrices that --tensor or the recipe gives a width and that stay as they are."""
    asked: dict[str, list[tuple[PlannedTensor, str]]] = defaultdict(list)
    for tensor, reason in _kept_matrices(plan):
        override = plan.recipe.override(tensor.name)
        if reason in _BY_USER:
            continue
        if override is not None and override[1] is not None:
            asked[f"--tensor {override[0].pattern}={override[1]}"].append((tensor, reason))
        elif tensor.role not in CODED_ROLES and plan.recipe.bits.get(tensor.role) is not None:
            asked[f"The recipe {plan.recipe.name}"].append((tensor, reason))
    return [
        f"{who} does not code {_examples(tensors)}: {reason}."
        for who, kept in asked.items()
        for reason, tensors in _by_reason(kept)
    ]


def _coverage_warnings(plan: Plan) -> list[str]:
    kept, head = _kept_matrices(plan), _tied_embeddings(plan)
    coded = sum(tensor.weights for tensor in (*plan.coded, *head) if isinstance(tensor, CodedTensor))
    total = coded + sum(_weights(tensor) for tensor in kept)
    total += sum(math.prod(tensor.info.shape) for tensor in head if isinstance(tensor, KeptTensor))
    if not coded or coded >= _MIN_FRACTION * total:
        return []
    largest = [f"{t.name} ({reason})" for t, reason in kept[:_MAX_NAMED]]
    return [f"Only {coded / total:.1%} of the weights in matrices are coded. Largest kept: {', '.join(largest)}."]


def _tied_embeddings(plan: Plan) -> list[PlannedTensor]:
    """Return the embeddings of tokens if a tied head, which is not stored, is multiplied by them; else nothing."""
    if not plan.source.tied or any(tensor.role == "head" for tensor in plan.tensors):
        return []
    return [t for t in plan.tensors if t.role == "embedding" and "per_layer" not in t.name][:1]


def _kept_matrices(plan: Plan) -> list[tuple[PlannedTensor, str]]:
    """Return the kept tensors of two or more dimensions and the reason for each, the largest first."""
    found = [(tensor, tensor.reason) for tensor in plan.kept if len(tensor.info.shape) > 1]
    return sorted(found, key=_weights, reverse=True)


def _weights(kept: tuple[PlannedTensor, str]) -> int:
    return sum(math.prod(shape) for _, _, shape in kept[0].stored_tensors)


def _by_reason(kept: Sequence[tuple[PlannedTensor, str]]) -> list[tuple[str, list[PlannedTensor]]]:
    """Group kept tensors by reason; the reason that keeps most weights comes first."""
    groups: dict[str, list[PlannedTensor]] = defaultdict(list)
    weights: dict[str, int] = defaultdict(int)
    for tensor, reason in kept:
        groups[reason].append(tensor)
        weights[reason] += _weights((tensor, reason))
    return sorted(groups.items(), key=lambda group: -weights[group[0]])


def _examples(tensors: Sequence[PlannedTensor]) -> str:
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return f"{tensors[0].name}{more}"


def _hint(kept: Sequence[tuple[PlannedTensor, str]]) -> str:
    reason = _by_reason(kept)[0][0]
    if reason in _BY_USER:
        return "Change --include, --exclude or --tensor."
    if reason.endswith("is no weight type"):
        return "Give the checkpoint in bfloat16, float16 or float32."
    return "`hlwq quantize --dry-run` lists every tensor with its reason."
