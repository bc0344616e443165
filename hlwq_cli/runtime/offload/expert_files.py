"""Records of offloaded experts: read from a checkpoint's shards into memory once, or one by one when needed."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hlwq_kernels.offload import Part, RecordLayout

from ...checkpoint.io import DTYPES, TensorInfo, read_header, read_into
from ...host_memory import HostMemory
from ..modules.experts import HLWQExperts
from ..modules.names import PARAMETERS, codes_name

logger = logging.getLogger("hlwq")
READERS = 4
"""Layers that are read in parallel."""


@dataclass(frozen=True)
class StoredPart:
    """One stored tensor of all experts of a layer, in a shard."""

    path: Path
    info: TensorInfo


def stored_parts(files: Iterable[str]) -> dict[str, StoredPart]:
    """Return the tensors of coded parameters in a checkpoint's shards, by stored name."""
    found: dict[str, StoredPart] = {}
    for file in files:
        path = Path(file)
        found |= {n: StoredPart(path, info) for n, info in read_header(path, path.name)[0].items() if codes_name(n)}
    return found


@dataclass(frozen=True)
class OffloadedExperts:
    """Where the files store the experts of a model that was built without them.

    Attributes:
        parts: of each experts module, by its path, in the order of its layout.
        missing: names of parts that no file stores.
        mismatched: names of parts whose shape or dtype differs from the module's.
    """

    parts: dict[str, tuple[StoredPart, ...]]
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]

    @classmethod
    def find(cls, model: nn.Module, stored: Mapping[str, StoredPart]) -> OffloadedExperts:
        """Find the parts of all experts modules with a layout; `stored` has them by their names in the model."""
        parts, missing, mismatched = {}, [], []
        for path, module in model.named_modules():
            if not isinstance(module, HLWQExperts) or module.layout is None:
                continue
            wanted = dict(zip(_names(path, module), (*module.layout.gate_up, *module.layout.down), strict=True))
            missing += [name for name in wanted if name not in stored]
            found = {name: stored[name] for name in wanted if name in stored}
            mismatched += [n for n, s in found.items() if not _fits(s.info, module.expert_count, wanted[n])]
            parts[path] = tuple(found.values())
        return cls(parts, tuple(missing), tuple(mismatched))

    def takes(self, name: str) -> bool:
        """Return whether a tensor of this name in the model belongs to one of these modules."""
        return name.rpartition(".")[0] in self.parts


def _names(path: str, module: HLWQExperts) -> list[str]:
    return [f"{path}.{kind}_{parameter}" for parameter in PARAMETERS for kind in module.quant_format.parts()]


def _fits(info: TensorInfo, experts: int, part: Part) -> bool:
    return info.shape == (experts, *part.shape) and DTYPES.get(info.dtype) == part.dtype


class FileRecords:
    """A layer's records in the checkpoint's own files, which the system caches in free memory.

    Args:
        layout: of a record.
        parts: in the order of the layout.
        pin: whether to pin the buffer of the record that was read last.
    """

    pinned = None

    def __init__(self, layout: RecordLayout, parts: Sequence[StoredPart], pin: bool) -> None:
        self._files = [os.open(part.path, os.O_RDONLY) for part in parts]
        self._close = weakref.finalize(self, _close, self._files)
        self._parts = list(zip((*layout.gate_up, *layout.down), parts, self._files, strict=True))
        self._record = torch.zeros(layout.bytes, dtype=torch.uint8, pin_memory=pin)

    def read(self, expert: int) -> torch.Tensor:
        """See `Records`."""
        self.read_into(expert, self._record)
        return self._record

    def read_into(self, expert: int, record: torch.Tensor) -> None:
        """Read an expert into a record, uint8 (bytes,)."""
        buffer = record.numpy().data
        for part, stored, file in self._parts:
            _read(file, buffer, part, stored, expert)


def _read(file: int, record: memoryview, part: Part, stored: StoredPart, expert: int) -> None:
    at = stored.info.offset + expert * part.bytes
    read_into(file, record[part.offset : part.offset + part.bytes], at, stored.info.file)


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


class HostRecords:
    """A layer's records in host memory, which a GPU reads itself if the memory can be pinned.

    Args:
        experts: how many.
        layout: of a record.
        pin: whether to pin the memory.

    Attributes:
        records: uint8 (experts, bytes).
        pinned: the same if it is pinned, else None.
    """

    def __init__(self, experts: int, layout: RecordLayout, pin: bool) -> None:
        self._memory = HostMemory(experts * layout.bytes, pin)
        self.records = self._memory.bytes.view(experts, layout.bytes)
        self.pinned = self.records if self._memory.pinned else None
        if pin and self.pinned is None:
            logger.warning("Host memory cannot be pinned: the host copies experts, which is slower.")

    def read(self, expert: int) -> torch.Tensor:
        """See `Records`."""
        return self.records[expert]


def fill(layers: Mapping[HostRecords, FileRecords]) -> None:
    """Read layers from their files, several in parallel."""

    def read(layer: tuple[HostRecords, FileRecords]) -> None:
        host, files = layer
        for expert, record in enumerate(host.records):
            files.read_into(expert, record)

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, layers.items()))
