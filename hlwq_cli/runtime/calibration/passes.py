"""One run of all inputs through a model: load each stage, and hand on what was summed for it."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch

from ...checkpoint import CodedTensor, Plan
from ...checkpoint.io import DTYPES
from ...checkpoint.run import CalibratedLayer, CalibratedTensor
from ...errors import HlwqError, UnsupportedError
from ..loading.config import first_sentence
from .input_sums import InputSums, Watched
from .inputs import Inputs
from .observer import WatchedWeights
from .schedule import Schedule, merged
from .skeleton import Skeleton, output_head
from .stages import Stage
from .weights import StageReader


@dataclass(frozen=True)
class Prepared:
    """What is known of a plan before its inputs run.

    Attributes:
        plan: the plan.
        skeleton: its model.
        watched: the coded tensors that products were seen with, by parameter.
        visits: the stages that each input will run.
        last: see `Schedule`.
        threads: see `Schedule`.
    """

    plan: Plan
    skeleton: Skeleton
    watched: Mapping[str, CodedTensor]
    visits: tuple[tuple[int, ...], ...]
    last: str | None
    threads: int


class Watcher:
    """Watches the coded weights of the stages in memory: those of stage 0 and of one other."""

    def __init__(self, weights: WatchedWeights, coded: Mapping[str, CodedTensor]) -> None:
        self._weights, self._coded = weights, coded
        self._around: Mapping[str, torch.Tensor] = {}

    def watch(self, stage: Stage, tensors: Mapping[str, torch.Tensor]) -> None:
        """Watch a stage in place of the one before."""
        if not stage.number:
            self._around = tensors
        self._weights.clear()
        for name, tensor in {**self._around, **tensors}.items():
            if name in self._coded:
                self._weights.add(tensor, Watched(name, name.rpartition(".")[0], self._coded[name].shape))


class Stream:
    """One run of the inputs through the model; use it in a `with`.

    Args:
        prepared: the model.
        coded: the coded tensors to sum inputs for, by parameter.
    """

    def __init__(self, prepared: Prepared, coded: Mapping[str, CodedTensor]) -> None:
        self._prepared, self._left = prepared, dict(coded)
        skeleton = prepared.skeleton
        self._weights, self._sums = WatchedWeights(), InputSums()
        self._watcher = Watcher(self._weights, self._left)
        self._reader = StageReader(prepared.plan.source, skeleton)
        self._loaded: Mapping[str, torch.Tensor] = {}
        self._order = merged(prepared.visits)
        self._stages_of = {
            parameter: frozenset(s.number for s in skeleton.stages if parameter in skeleton.read_names(s))
            for parameter in coded
        }

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._loaded = {}
        self._sums.of.clear()

    def run(self, inputs: Sequence[Inputs]) -> Generator[CalibratedLayer]:
        """Run; see `Calibration.layers`."""
        skeleton = self._prepared.skeleton
        last, threads = self._prepared.last, self._prepared.threads
        schedule = Schedule(skeleton, self._load, self._weights, self._sums, last, threads)
        total = len(set().union(*self._stages_of.values()))
        number = 0
        with closing(schedule.run(inputs, self._prepared.visits)) as stages:
            while self._left:
                with explained(self._prepared.plan, skeleton.device):
                    stage, ahead = next(stages)
                done = [p for p in self._left if not stage.number or not self._stages_of[p] & {0, *ahead}]
                if tensors := self._take(done):
                    yield CalibratedLayer(stage.path or "the rest", number, total, tensors)
                    number += 1
                del tensors
                self._loaded = {}

    def _load(self, stage: Stage) -> Mapping[str, torch.Tensor]:
        names = self._prepared.skeleton.read_names
        self._loaded = self._reader.read(names(stage))
        self._watcher.watch(stage, self._loaded)
        if stage.number and self._order[:1] == [stage.number]:
            del self._order[0]
        if self._order:
            self._reader.begin(names(self._prepared.skeleton.stages[self._order[0]]))
        return self._loaded

    def _take(self, parameters: Collection[str]) -> dict[str, CalibratedTensor]:
        """Return the moments of parameters, with the weights that are in memory."""
        taken = {p: self._left.pop(p) for p in parameters}
        found = {}
        for parameter, (moments, prior) in self._sums.take(parameters).items():
            weight = self._loaded.get(parameter)
            if weight is not None and parameter in self._prepared.skeleton.transposed:
                weight = weight.mT
            exact = weight is not None and _is_exact(taken[parameter], weight.dtype)
            found[taken[parameter].name] = CalibratedTensor(moments, prior, weight if exact else None)
        return found


def head_of(skeleton: Skeleton, coded: Collection[str]) -> str | None:
    """Return the coded parameter that the model's last product is with, if there is one."""
    head = output_head(skeleton.model)
    path = next((path for path, module in skeleton.model.named_modules() if module is head), None)
    name = skeleton.source_of.get(f"{path}.weight")
    return name if name in coded else None


@contextmanager
def explained(plan: Plan, device: torch.device) -> Iterator[None]:
    """Raise what a model's forward method raises as an error for people."""
    try:
        yield
    except HlwqError:
        raise
    except torch.OutOfMemoryError as error:
        raise HlwqError(
            f"{device} has too little free memory to run a layer of {plan.source.id}.",
            "Free some, calibrate with shorter sequences, or use --device cpu.",
        ) from error
    except Exception as error:  # whatever a model's code raises
        raise UnsupportedError(
            f"{plan.source.id} cannot be calibrated, as transformers cannot run it: {first_sentence(error)}.",
            "Leave --calibrate out.",
        ) from error


def _is_exact(tensor: CodedTensor, dtype: torch.dtype) -> bool:
    """Whether weights in a dtype have the values of the source."""
    return all(dtype in (torch.float32, DTYPES[part.info.dtype]) for part in tensor.parts)
