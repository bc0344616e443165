"""The report that people paste: every measure asked for, of one or several checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import HlwqError, UsageError
from ..progress import Progress, ProgressCallback, ignore_progress
from ..runtime.kv.bits import KVBits
from ..runtime.loading.load import check_loadable, load_model, load_processor
from ..runtime.modules.format import Execution
from ..runtime.offload.expert_cache import ExpertBudget
from .divergence import Divergence, compare
from .kv_size import KVCacheSize, kv_cache_size
from .perplexity import PairedDelta, Perplexity, paired, perplexity, score
from .similarity import TensorSimilarity, similarity_of
from .size import weights_size
from .speed import Speed, measure_speed, release_memory
from .tasks import TaskScore, open_tasks, run_tasks
from .text import load_text
from .windows import Protocol, ProtocolName, Windows, make_windows


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        ppl: perplexity.
        kld: divergence from the reference.
        cosine: weight error against the reference.
        speed: tokens per second.
        tasks: of lm-eval, by name.
        task_folder: of task files of one's own.
        task_limit: use at most so many examples of each.
        data: text, see `load_text`.
        protocol: of windows.
        window: tokens in a window; None is the protocol's own.
        windows: at most so many.
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


@dataclass(frozen=True)
class Measured:
    """One checkpoint's figures; what was not asked for is None."""

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
    """All figures.

    Attributes:
        protocol: how text was measured, or None.
        note: what people should know of the text.
        reference: figures of the reference, or None.
        measured: of each checkpoint.
        failed: a sentence, where a run ended early; what was measured before is here.
    """

    protocol: Protocol | None
    note: str
    reference: Measured | None
    measured: tuple[Measured, ...]
    failed: str = ""


@dataclass
class _Bench:
    request: Request
    progress: ProgressCallback
    windows: Windows | None = None
    note: str = ""
    task_manager: Any = None
    vocabulary: tuple[str, int] | None = None
    reference_model: Any = None
    reference_nlls: Any = None
    reference_perplexity: Perplexity | None = None
    done: list[Measured] = field(default_factory=list)

    def progress_of(self, path: str) -> ProgressCallback:
        """Name the checkpoint in the stage of each event."""
        return lambda event: self.progress(replace(event, stage=f"{event.stage} of {path}"))


def bench(
    paths: Sequence[str], request: Request, ref: str | None = None, progress: ProgressCallback = ignore_progress
) -> BenchReport:
    """Measure checkpoints, coded or plain, one after the other, against a reference where one is given.

    Raises:
        UsageError: a measure needs a reference and none is given, or nothing is asked for.
        HlwqError: the first checkpoint cannot be measured; a later failure is in the report.
    """
    _check(paths, request, ref)
    run = _Bench(request, progress)
    if request.tasks:
        run.task_manager = open_tasks(request.tasks, request.task_folder)
    failed, reference = "", None
    if request.ppl or request.kld:
        tokenizer = load_processor(ref or paths[0])
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        text = load_text(request.data)
        run.windows, run.note = (
            make_windows(text, tokenizer, request.protocol, request.window, request.windows),
            text.note,
        )
    try:
        if ref is not None:
            reference = _reference(run, ref)
        for path in paths:
            run.done.append(_measure(run, path, ref))
    except (HlwqError, MemoryError, RuntimeError) as error:
        if not run.done and (reference is None or isinstance(error, HlwqError)):
            raise
        failed = _sentence(error)
    if reference is not None and reference.perplexity is None:
        reference = replace(reference, perplexity=run.reference_perplexity)
    protocol = run.windows.protocol if run.windows else None
    return BenchReport(protocol, run.note, reference, tuple(run.done), failed)


def _sentence(error: Exception) -> str:
    """What went wrong; torch, safetensors and CUDA each say in their own way that memory ran out."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return f"there is not enough memory ({first.rstrip('.')})."
    return first


def _check(paths: Sequence[str], request: Request, ref: str | None) -> None:
    if not paths:
        raise UsageError("There is nothing to measure.", "Name a checkpoint.")
    if not (request.ppl or request.kld or request.cosine or request.speed or request.tasks):
        raise UsageError("Nothing was asked for.", "Use --ppl, --kld, --cosine, --speed or --tasks.")
    if request.kv_bits is not None and not (request.ppl or request.kld or request.speed or request.tasks):
        raise UsageError("--kv-bits changes nothing that was asked for.", "Use --ppl, --kld, --speed or --tasks.")
    if request.expert_budget is not None and not (request.ppl or request.kld or request.speed or request.tasks):
        raise UsageError("--gpu-memory changes nothing that was asked for.", "Use --ppl, --kld, --speed or --tasks.")
    if ref is None and (request.kld or request.cosine):
        raise UsageError("--kld and --cosine compare with a reference.", "Give the unquantized model with --ref.")
    for path in paths:
        check_loadable(
            path,
            device=request.device,
            dtype=request.dtype,
            execution=request.execution,
            expert_budget=request.expert_budget,
        )
    if ref is not None:
        check_loadable(ref, device=request.device, dtype=request.dtype)


def _load(run: _Bench, path: str, reference: bool = False) -> tuple[Any, float]:
    release_memory()
    start = time.perf_counter()
    run.progress(Progress(f"loading {path}", 0, 1, "steps"))
    r = run.request
    own: dict[str, Any] = {} if reference else {"kv_bits": r.kv_bits, "expert_budget": r.expert_budget}
    model = load_model(path, device=r.device, dtype=r.dtype, execution=r.execution, **own)
    if run.windows is not None:
        _check_vocabulary(run, path, model.config.get_text_config().vocab_size)
    return model, time.perf_counter() - start


def _check_vocabulary(run: _Bench, path: str, size: int) -> None:
    """All models read the same tokens, those of the first: raise UsageError for one that has others."""
    first, expected = run.vocabulary = run.vocabulary or (path, size)
    if size != expected:
        raise UsageError(
            f"{path} has a vocabulary of {size}, {first} one of {expected}.",
            "Compare a model with the one it was made from.",
        )


def _reference(run: _Bench, ref: str) -> Measured:
    found = Measured(ref, *weights_size(ref))
    if not (run.request.ppl or run.request.kld or run.request.speed or run.request.tasks):
        return found
    model, seconds = _load(run, ref, reference=True)
    found = replace(found, load_seconds=seconds)
    if run.windows is not None and not run.request.kld:
        run.reference_nlls = score(model, run.windows, run.progress_of(ref))
        found = replace(found, perplexity=perplexity(run.reference_nlls))
    found = _speed_and_tasks(run, found, model)
    if run.request.kld:
        run.reference_model = model
    return found


def _measure(run: _Bench, path: str, ref: str | None) -> Measured:
    found, r = Measured(path, *weights_size(path)), run.request
    if r.ppl or r.kld or r.speed or r.tasks:
        model, seconds = _load(run, path)
        size = None if r.kv_bits is None else kv_cache_size(model, r.kv_bits)
        found = replace(found, load_seconds=seconds, kv_cache=size)
        if r.kld and run.windows is not None:
            c = compare(model, run.reference_model, run.windows, run.progress_of(path))
            found = replace(found, perplexity=c.perplexity, delta=c.delta, divergence=c.divergence)
            run.reference_perplexity = c.reference_perplexity
        elif r.ppl and run.windows is not None:
            nlls = score(model, run.windows, run.progress_of(path))
            delta = None if run.reference_nlls is None else paired(nlls, run.reference_nlls)
            found = replace(found, perplexity=perplexity(nlls), delta=delta)
        found = _speed_and_tasks(run, found, model)
        del model
    if r.cosine and ref is not None:
        found = replace(found, similarity=similarity_of(path, ref, run.progress_of(path)))
    return found


def _speed_and_tasks(run: _Bench, found: Measured, model: Any) -> Measured:
    r = run.request
    if r.speed:
        run.progress(Progress(f"speed of {found.path}", 0, 1, "steps"))
        found = replace(found, speed=measure_speed(model))
    if r.tasks:
        run.progress(Progress(f"tasks of {found.path}", 0, 1, "steps"))
        processor = load_processor(found.path)
        tokenizer = getattr(processor, "tokenizer", processor)
        found = replace(found, tasks=run_tasks(model, tokenizer, r.tasks, run.task_manager, r.task_limit))
    return found
