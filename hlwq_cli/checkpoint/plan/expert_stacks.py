"""Per-expert matrices on disk, found and put in the order of the model class's stacked tensors."""

from __future__ import annotations

from collections import defaultdict

from ...errors import CorruptError
from ..io.safetensors_file import TensorInfo
from ..io.source import Source
from .architecture import Architecture, Stack

Stacked = tuple[str, tuple[TensorInfo, ...], tuple[int, ...]]


def find_stacks(source: Source, architecture: Architecture) -> dict[str, Stacked]:
    """For each per-expert tensor, the stack it belongs to: (name, source tensors in row order, shape)."""
    found: dict[str, Stacked] = {}
    for stack in architecture.stacks:
        experts: dict[str, dict[int, dict[str, TensorInfo]]] = defaultdict(lambda: defaultdict(dict))
        for part in stack.parts:
            for name, info in source.tensors.items():
                match = stack.match(name, part)
                if match:
                    experts[f"{match['prefix']}.{stack.name}"][int(match["expert"])][part] = info
        for name, members in experts.items():
            entry = _join(name, stack, members)
            found.update({p.name: entry for p in entry[1]})
    return found


def _join(name: str, stack: Stack, members: dict[int, dict[str, TensorInfo]]) -> Stacked:
    lacking = [
        f"{name} expert {e} {p}" for e in range(max(members) + 1) for p in stack.parts if p not in members.get(e, {})
    ]
    if lacking:
        raise CorruptError(f"{lacking[0]} is missing ({len(lacking)} such).", "Fetch the checkpoint again.")
    parts = tuple(members[e][p] for e in range(len(members)) for p in stack.parts)
    odd = [p.name for p in parts if len(p.shape) != 2 or (p.shape, p.dtype) != (parts[0].shape, parts[0].dtype)]
    if odd:
        raise CorruptError(
            f"{odd[0]} has another shape or type than its fellow experts.", "Fetch the checkpoint again."
        )
    rows, columns = parts[0].shape
    return name, parts, (len(members), rows * len(stack.parts), columns)
