"""An importance matrix as a calibration: it has the diagonals of the moments, and no model runs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Generator, Mapping
from pathlib import Path
from typing import Any

import torch

from ...checkpoint import CodedTensor, Plan
from ...checkpoint.run import CalibratedLayer, CalibratedTensor
from ...codec import Moments
from ...errors import UsageError
from .imatrix import Imatrix
from .imatrix_names import map_names

_NO_ENTRY = "the imatrix has no entry for it"


class ImatrixCalibration:
    """Moments of an importance matrix; see `Calibration` of hlwq_cli/checkpoint/run.

    Args:
        imatrix: the importance matrix.
        device: where the run encodes.
    """

    def __init__(self, imatrix: Imatrix, device: torch.device) -> None:
        self.imatrix, self.device = imatrix, device
        self._entries: dict[str, str] = {}
        self._tensors: dict[str, CodedTensor] = {}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What decides the bytes."""
        return {"kind": "imatrix", "sha256": self.imatrix.sha256}

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"origin": self.imatrix.name, "tokens": self.imatrix.tokens, **self.fingerprint}

    def prepare(self, plan: Plan) -> Mapping[str, str]:
        """Find the entry of each coded tensor; see `Calibration`.

        Raises:
            UsageError: an entry belongs to no tensor of the model, has another number of inputs, or none belongs to a
                coded tensor.
        """
        text = plan.source.config.get("text_config")
        types = [config.get("model_type", "") for config in (text, plan.source.config) if isinstance(config, dict)]
        mapped = map_names(self.imatrix.entries, plan.source.tensors, str(types[0]))
        for tensor in plan.coded:
            entry = next((mapped[name] for name in tensor.sources if name in mapped), None)
            if entry is not None:
                self._check(tensor, entry)
                self._entries[tensor.name], self._tensors[tensor.name] = entry, tensor
        if not self._entries:
            raise UsageError(
                f"{self.imatrix.name} has no entry for a tensor that is coded.", "Give the imatrix of this model."
            )
        return {tensor.name: _NO_ENTRY for tensor in plan.coded if tensor.name not in self._entries}

    def layers(self, names: Collection[str]) -> Generator[CalibratedLayer]:
        """Yield the moments of these tensors, block by block; see `Calibration`."""
        blocks: dict[str, list[str]] = defaultdict(list)
        for name, entry in self._entries.items():
            if name in names:
                found = re.match(r"blk\.\d+", entry)
                blocks[found[0] if found else entry.removesuffix(".weight")].append(name)
        for number, (block, members) in enumerate(blocks.items()):
            yield CalibratedLayer(block, number, len(blocks), {name: self._calibrated(name) for name in members})

    def write_files(self, out: Path) -> tuple[str, ...]:
        """Write nothing: the imatrix is another's file; its hash is in the manifest."""
        return ()

    def _check(self, tensor: CodedTensor, name: str) -> None:
        """Raise UsageError unless an entry is one matrix, or one for each expert, of this many inputs."""
        inputs, entry = tensor.shape[-1], self.imatrix.entries[name]
        matrices = entry.sums.numel() / inputs
        is_stack = len(tensor.shape) == 3
        fits = matrices == 1 or (matrices == tensor.matrices if is_stack else (_expert(tensor) or 0) < matrices)
        if not fits or matrices % 1 or len(entry.counts) not in (1, matrices):
            raise UsageError(
                f"{name} of {self.imatrix.name} has {entry.sums.numel():,} inputs, and {tensor.name} has "
                f"{tensor.matrices:,} x {inputs:,}.",
                "Give the imatrix of this model.",
            )

    def _calibrated(self, name: str) -> CalibratedTensor:
        tensor, entry_name = self._tensors[name], self._entries[name]
        entry = self.imatrix.entries[entry_name]
        sums = entry.sums.view(-1, tensor.shape[-1])
        counts = entry.counts.expand(len(sums))
        if len(tensor.shape) == 3:
            experts = tensor.shape[0]
            moments = Moments(self._copy(sums.expand(experts, -1)), counts.expand(experts).clone(), is_diagonal=True)
        else:
            at = (_expert(tensor) or 0) % len(sums)
            moments = Moments(self._copy(sums[at]), float(counts[at]), is_diagonal=True)
        return CalibratedTensor(moments, "isotropic" if "ffn_down" in entry_name else "shared")

    def _copy(self, sums: torch.Tensor) -> torch.Tensor:
        return sums.to(self.device, copy=True).contiguous()


def _expert(tensor: CodedTensor) -> int | None:
    """Return the number of the expert that a matrix belongs to, where experts are not stacked."""
    found = re.search(r"\.experts\.(\d+)\.", tensor.sources[0])
    return int(found[1]) if found else None
