"""What `bench` is asked for, and the report of what it measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..runtime.kv import KVBits
from ..runtime.modules import Execution
from ..runtime.offload import ExpertBudget
from .divergence import Divergence
from .perplexity import PairedDelta, Perplexity
from .similarity import TensorSimilarity
from .sizes import KVCacheSize
from .speed import Speed
from .tasks import TaskScore
from .windows import Protocol, ProtocolName


@dataclass(frozen=True)
class Request:
    """What to measure, on what text, and how the models run.

    Attributes:
        ppl: perplexity.
        kld: divergence from the reference.
        cosine: weight error against the reference.
        speed: tokens per second.
        tasks: names of lm-eval tasks.
        task_folder: a folder with the user's own task files.
        task_limit: maximum number of examples per task.
        data: the text; see `load_text`.
        protocol: how the text is cut into windows; see `make_windows`.
        window: tokens per window; None means the protocol's default.
        windows: maximum number of windows.
        device: see `load_model`.
        dtype: see `load_model`.
        execution: see `QuantFormat`.
        kv_bits: widths of the codes in which the checkpoints, never the reference, keep keys and values; or None.
        expert_budget: of the checkpoints' experts, never the reference's, see `load_model`.
    """

    ppl: bool = False
    kld: bool = False
    cosine: bool = False
    speed: bool = False
    tasks: tuple[str, ...] = ()
    task_folder: Path | None = None
    task_limit: int | None = None
    data: str | None = None
    protocol: ProtocolName = "paper"
    window: int | None = None
    windows: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    execution: Execution = "auto"
    kv_bits: KVBits | None = None
    expert_budget: ExpertBudget | None = None

    @property
    def needs_model(self) -> bool:
        """Whether a measure other than the weight error is requested, so that models must be loaded."""
        return self.ppl or self.kld or self.speed or bool(self.tasks)


@dataclass(frozen=True)
class Measured:
    """The figures of one checkpoint; what was not requested is None."""

    path: str
    bytes: int
    bits_per_weight: float | None
    kv_cache: KVCacheSize | None = None
    load_seconds: float | None = None
    perplexity: Perplexity | None = None
    delta: PairedDelta | None = None
    divergence: Divergence | None = None
    similarity: tuple[TensorSimilarity, ...] | None = None
    speed: Speed | None = None
    tasks: tuple[TaskScore, ...] | None = None


@dataclass(frozen=True)
class BenchReport:
    """The figures of all checkpoints.

    Attributes:
        protocol: how the text was measured, or None.
        note: remarks on the text for the user, such as that a checkpoint was calibrated on it; or empty.
        reference: figures of the reference, or None.
        measured: figures of each checkpoint.
        failed: a sentence if the run ended early, else empty; the figures measured before that are in this report.
    """

    protocol: Protocol | None
    note: str
    reference: Measured | None
    measured: tuple[Measured, ...]
    failed: str = ""
