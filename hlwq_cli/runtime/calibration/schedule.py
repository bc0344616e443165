"""Run forward passes together, stage by stage, with the weights of one stage in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from contextlib import ExitStack

import torch

from .deterministic import use_threads
from .forward_pass import FinishedError, ForwardPass
from .input_sums import InputSums
from .inputs import Inputs
from .observer import ProductObserver, WatchedWeights
from .skeleton import Skeleton, output_head
from .stages import Stage

Left = tuple[Stage, frozenset[int]]
"""A stage that all passes have left, and the stages that are still to be run."""
Load = Callable[[Stage], Mapping[str, torch.Tensor]]


class Schedule:
    """Forward passes of one model over several inputs.

    A pass pauses in front of each stage whose weights are not in memory. When no pass can go on, the stage that most of
    them wait for is loaded, and those go on. So what is kept of each pass is what its layers hand on, whatever that is
    in this model.

    Args:
        skeleton: the model.
        load: returns the weights of a stage, by the names of `Skeleton.read_names`.
        weights: to watch; filled by the caller while a stage is in memory.
        sums: of the inputs of watched weights.
        last: name of a watched weight whose product nothing needs, or None. Passes end in front of it.
        threads: of the CPU, for each pass.

    Attributes:
        visits: numbers of the stages that have been run, in order.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        load: Load,
        weights: WatchedWeights,
        sums: InputSums,
        last: str | None,
        threads: int,
    ) -> None:
        self._skeleton, self._load, self._threads = skeleton, load, threads
        self._weights, self._sums, self._last = weights, sums, last
        self._running: ForwardPass | None = None
        self._held: frozenset[int] = frozenset((0,))
        self.visits: list[int] = []

    def run(self, inputs: Sequence[Inputs], visits: Sequence[Sequence[int]]) -> Generator[Left]:
        """Run the model over inputs. Yields each stage when all passes have left it, while its weights are in memory.

        Args:
            inputs: keyword arguments of the model, one mapping for each pass.
            visits: the stages that each pass is expected to run, in order.

        Yields:
            The stage, and the stages that are still to be run; last stage 0.
        """
        passes = [ForwardPass(self._forward(i), v) for i, v in zip(inputs, visits, strict=True)]
        stages = self._skeleton.stages
        with ExitStack() as stack:
            stack.callback(self._end, passes)
            stack.enter_context(self._entered())
            around = self._load(stages[0])
            stack.enter_context(self._skeleton.holding(stages[0], around))
            for each in passes:
                self._resume(each)
            while waiting := [each for each in passes if each.waiting is not None]:
                number = _first([(each.waiting, each.ahead) for each in waiting if each.waiting is not None])
                with self._skeleton.holding(stages[number], self._load(stages[number])):
                    self._held = frozenset((0, number))
                    self.visits.append(number)
                    for each in waiting:
                        if each.waiting == number:
                            self._resume(each)
                    ahead: frozenset[int] = frozenset().union(*(each.ahead for each in passes))
                    yield stages[number], ahead
                self._held = frozenset((0,))
            yield stages[0], frozenset()

    def _entered(self) -> ExitStack:
        """Hook all modules of all stages, and take the hooks away in the end."""
        stack = ExitStack()
        head = output_head(self._skeleton.model)
        if head is not None and self._last is None:
            stack.callback(head.register_forward_pre_hook(_finish, prepend=True).remove)
        for stage in self._skeleton.stages[1:]:
            for module in self._skeleton.model.get_submodule(stage.path).modules():
                hook = module.register_forward_pre_hook(lambda *_, number=stage.number: self._enter(number))
                stack.callback(hook.remove)
        return stack

    def _enter(self, number: int) -> None:
        if number not in self._held:
            assert self._running is not None
            self._running.pause(number)

    def _resume(self, one: ForwardPass) -> None:
        self._running = one
        try:
            one.resume()
        finally:
            self._running = None
            self._sums.end_turn()

    def _after(self, name: str) -> None:
        if name == self._last:
            raise FinishedError

    def _forward(self, inputs: Inputs) -> Callable[[], None]:
        def forward() -> None:
            device = self._skeleton.device
            use_threads(self._threads)
            if device.type == "cuda":
                torch.cuda.set_device(device)
            with torch.no_grad(), ProductObserver(self._weights, self._sums, self._after):
                self._skeleton.model(**{name: self._skeleton.on_device(value) for name, value in inputs.items()})

        return forward

    def _end(self, passes: Sequence[ForwardPass]) -> None:
        for each in passes:
            each.cancel()
        self._weights.clear()


def _finish(*_: object) -> None:
    raise FinishedError


def _first(waiting: Sequence[tuple[int, Container[int]]]) -> int:
    """Return the stage to run: one that the fewest other passes come to later, and among those the first.

    Args:
        waiting: for each pass the stage that it waits for, and those that it has still to run.
    """
    wanted = {stage for stage, _ in waiting}
    return min(wanted, key=lambda s: (sum(stage != s and s in ahead for stage, ahead in waiting), s))


def merged(visits: Sequence[Sequence[int]]) -> list[int]:
    """Return the order in which stages are loaded for passes that run these."""
    left = [deque(each) for each in visits if each]
    order: list[int] = []
    while left:
        order.append(_first([(each[0], each) for each in left]))
        for each in left:
            if each[0] == order[-1]:
                each.popleft()
        left = [each for each in left if each]
    return order
