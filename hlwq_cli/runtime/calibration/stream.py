"""Calibrate with inputs of the model: run the original model over them, layer by layer, and sum what layers take in.

The weights of one layer are in memory at a time. Every input runs the model's own forward method, in a thread that
waits in front of each layer until all inputs have reached it. So every model that transformers can run is calibrated,
and what runs is the original model throughout: no layer sees errors of the coded ones before it.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...checkpoint import CodedTensor, Plan
from ...checkpoint.format import write_file
from ...checkpoint.run import CalibratedLayer
from ...devices import find_devices
from .deterministic import deterministic, fix_workspace
from .input_sums import SeenWeights
from .inputs import Inputs, hash_inputs, probe_inputs, token_count
from .observer import WatchedWeights
from .passes import Prepared, Stream, Watcher, explained, head_of
from .schedule import Schedule
from .skeleton import Skeleton, make_skeleton
from .stages import Stage
from .weights import zeros_for

RULE = 1
"""Version of how moments are summed and used. Raise it when bytes change."""
_NO_PRODUCT = "no product of it with a layer's inputs was seen"
_NOT_REACHED = "the calibration data does not reach it"
_LOOKED_UP = "its rows are looked up, not multiplied"


@dataclass
class StreamCalibration:
    """Moments from running the original model over inputs; see `checkpoint.run.Calibration`.

    Args:
        inputs: keyword arguments of the model for each forward pass: `input_ids` (sequences, tokens) and, for pictures,
            what the processor makes. They decide how much memory a pass takes; see `token_inputs`.
        device: `auto`, `cpu` or `cuda`, as for `find_devices`; the first one runs the model.
        about: what the manifest says of the inputs, such as the name of a text.
        files: contents of files to add to the checkpoint, by name.
    """

    inputs: Sequence[Inputs]
    device: str = "auto"
    about: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    _prepared: Prepared | None = field(default=None, init=False, repr=False)
    _threads: int = field(default_factory=torch.get_num_threads, init=False, repr=False)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the moments: inputs, device and versions."""
        import transformers

        return {
            "kind": "stream",
            "rule": RULE,
            "inputs": hash_inputs(self.inputs),
            "device": self._device_name(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest says."""
        tokens, sequences = token_count(self.inputs)
        return {**self.about, "tokens": tokens, "sequences": sequences, **self.fingerprint}

    def prepare(self, plan: Plan) -> Mapping[str, str]:
        """Run a few tokens through the model, with zeros for weights, to see which coded tensors they reach.

        Raises:
            UnsupportedError: transformers cannot run the model over these inputs.
        """
        fix_workspace()
        skeleton = make_skeleton(plan, self._torch_device)
        coded = {t.parameter: t for t in plan.coded if t.role != "embedding"}
        head = head_of(skeleton, coded)
        kinds: dict[tuple[str, ...], tuple[int, ...]] = {}
        seen: set[str] = set()
        for inputs in self.inputs:
            if (kind := tuple(sorted(inputs))) not in kinds:
                kinds[kind] = self._probe(plan, skeleton, coded, probe_inputs(inputs), head, seen)
        visits = tuple(kinds[tuple(sorted(inputs))] for inputs in self.inputs)
        watched = {name: tensor for name, tensor in coded.items() if name in seen}
        self._prepared = Prepared(plan, skeleton, watched, visits, head, self._threads)
        reached = {name for kind in kinds.values() for n in (0, *kind) for name in skeleton.stages[n].tensors}
        reached = {skeleton.source_of.get(name, name) for name in reached}
        return {
            t.name: _LOOKED_UP if t.role == "embedding" else _NO_PRODUCT if t.parameter in reached else _NOT_REACHED
            for t in plan.coded
            if t.parameter not in seen
        }

    def layers(self, names: Collection[str]) -> Generator[CalibratedLayer]:
        """Yield moments layer by layer."""
        assert self._prepared is not None
        prepared = self._prepared
        coded = {p: t for p, t in prepared.watched.items() if t.name in names}
        if not coded:
            return
        with (
            deterministic(self._threads),
            Stream(prepared, coded) as stream,
            closing(stream.run(self.inputs)) as layers,
        ):
            yield from layers

    def write_files(self, out: Path) -> tuple[str, ...]:
        """Write the files that were given."""
        for name, content in self.files.items():
            write_file(out / name, content)
        return tuple(self.files)

    @property
    def _torch_device(self) -> torch.device:
        return find_devices(self.device)[0]

    def _device_name(self) -> str:
        device = self._torch_device
        if device.type == "cuda":
            return torch.cuda.get_device_name(device)
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {self._threads} threads"

    def _probe(
        self,
        plan: Plan,
        skeleton: Skeleton,
        coded: Mapping[str, CodedTensor],
        inputs: Inputs,
        last: str | None,
        seen: set[str],
    ) -> tuple[int, ...]:
        """Run one kind of inputs with zeros for weights. Returns the stages that run; adds what is seen to `seen`."""
        weights, sums = WatchedWeights(), SeenWeights()
        watcher = Watcher(weights, coded)

        def load(stage: Stage) -> dict[str, torch.Tensor]:
            tensors = {name: zeros_for(skeleton, plan.source, name) for name in skeleton.read_names(stage)}
            watcher.watch(stage, tensors)
            return tensors

        schedule = Schedule(skeleton, load, weights, sums, last, self._threads)
        with explained(plan, skeleton.device), closing(schedule.run([inputs], [()])) as run:
            for _ in run:
                pass
        seen.update(sums.names)
        return tuple(schedule.visits)
