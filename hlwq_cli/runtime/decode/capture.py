"""Decode steps captured into CUDA graphs, and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..transformers_private import silence_sync_warning

logger = logging.getLogger("hlwq")
Step = Callable[[str | None], None]
"""A step's work, from and to static buffers, with an experts implementation or None; it may be repeated at will."""
REPLAYS = 5
"""Replays by which experts implementations are compared."""


class StepGraphs:
    """Runs a decode step: as a graph for each length of the cache that attention reads, or as it is.

    Attributes:
        error: why steps are not captured; None while they are.

    Args:
        device: of the model.
        experts: experts implementations to choose from, by speed, at the first capture.
    """

    def __init__(self, device: torch.device, experts: Sequence[str | None] = (None,)) -> None:
        self.device = device
        self.error = None if device.type == "cuda" else "there is no CUDA device"
        self._experts: Sequence[str | None] = experts if self.error is None else (None,)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        if self.error is None:
            silence_sync_warning()

    def clear(self) -> None:
        """Drop all graphs, because the buffers they use are gone."""
        self._graphs, self._pool = {}, None

    def run(self, length: int, step: Step) -> None:
        """Run a step whose attention reads `length` positions; capture it first if that has not been done."""
        if self.error is None and length not in self._graphs:
            self._capture(length, step)
        if self.error is None:
            self._graphs[length].replay()
        else:
            step(None)

    def _capture(self, length: int, step: Step) -> None:
        """Capture the step with the quickest experts implementation, or record why it cannot be captured."""
        captured: list[tuple[float, str | None, torch.cuda.CUDAGraph]] = []
        failure: RuntimeError | None = None
        for experts in self._experts:
            try:
                with torch.cuda.device(self.device):
                    graph = self._captured(step, experts)
                    time = _milliseconds(graph) if len(self._experts) > 1 else 0.0
            except RuntimeError as error:
                failure = error
                continue
            captured.append((time, experts, graph))
        if captured:
            _, experts, self._graphs[length] = min(captured, key=lambda c: c[0])
            self._experts, self._pool = (experts,), self._graphs[length].pool()
        else:
            self.error = (str(failure).splitlines() or [type(failure).__name__])[0]
            logger.warning("Decoding without a CUDA graph, which is slower: %s", self.error)

    def _captured(self, step: Step, experts: str | None) -> torch.cuda.CUDAGraph:
        """Run once to compile and plan, once to find synchronizations, which would break a capture, then capture."""
        stream = self._stream = self._stream or torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step(experts)
            with _synchronizing_is_an_error():
                step(experts)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with (
            _generator_restored_on_error(),
            torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
        ):
            step(experts)
        return graph


@contextmanager
def _synchronizing_is_an_error() -> Iterator[None]:
    """Raise RuntimeError where the host would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _generator_restored_on_error() -> Iterator[None]:
    """Restore the state of the device's random generator when a capture fails, which would leave it unusable."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    try:
        yield
    except BaseException:
        generator.graphsafe_set_state(before)
        raise


def _milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    start.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
