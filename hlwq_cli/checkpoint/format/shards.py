"""The layout of shards: which tensors share a file, their order, the header, and the index of all shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..io import INDEX, build_header
from ..plan import PlannedTensor, StoredTensor, stored_bytes
from .files import write_json

FORMAT_VERSION = 1
LAYOUT = 2
"""Version of the tensors' order within a shard. Readers do not need it, but a run is only resumed with the same one."""
DEFAULT_SHARD_BYTES = 2_000_000_000
_METADATA = {"format": "pt", "format_version": str(FORMAT_VERSION)}
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_WIDEST = 8


@dataclass(frozen=True)
class Shard:
    """One output file and the planned tensors in it."""

    file: str
    planned: tuple[PlannedTensor, ...]

    @property
    def stored_tensors(self) -> list[StoredTensor]:
        """The stored tensors in the order of the file, which is the order of the planned tensors.

        Tensors that could leave the next one unaligned come last, wider types first.
        """
        last = [t for planned in self.planned if not lies_in_order(planned) for t in planned.stored_tensors]
        in_order = [t for planned in self.planned if lies_in_order(planned) for t in planned.stored_tensors]
        return in_order + sorted(last, key=lambda t: -t[1].itemsize)

    @property
    def nbytes(self) -> int:
        """Size of its tensors."""
        return sum(planned.nbytes for planned in self.planned)


def lies_in_order(planned: PlannedTensor) -> bool:
    """Return whether the sizes of all stored tensors are multiples of the widest type, so that all stay aligned."""
    return all(stored_bytes(t) % _WIDEST == 0 for t in planned.stored_tensors)


def shard_header(tensors: list[StoredTensor]) -> bytes:
    """Return the first bytes of a shard that holds these tensors in this order; they determine the bytes."""
    return build_header(tensors, _METADATA)


def divide(planned_tensors: Iterable[PlannedTensor], max_bytes: int) -> tuple[Shard, ...]:
    """Divide planned tensors, in order, into shards of at most `max_bytes`; a larger tensor gets its own shard."""
    groups: list[list[PlannedTensor]] = [[]]
    size = 0
    for planned in planned_tensors:
        n = planned.nbytes
        if groups[-1] and size + n > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(planned)
        size += n
    if len(groups) == 1:
        return (Shard("model.safetensors", tuple(groups[0])),)
    return tuple(
        Shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", tuple(group)) for i, group in enumerate(groups, 1)
    )


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Write the index of which shard holds which tensor, unless there is only one shard."""
    if len(shards) == 1:
        return
    weight_map = {name: shard.file for shard in shards for name, _, _ in shard.stored_tensors}
    index = {"metadata": {"total_size": sum(s.nbytes for s in shards)}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX, index)
