"""The measures of `hlwq bench`, for one checkpoint after the other, against a reference if there is one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..errors import HlwqError, UsageError
from ..progress import Progress, ProgressCallback, ignore_progress
from ..runtime.calibration_data import overlap_note
from ..runtime.loading import (
    check_answers_text,
    check_loadable,
    context_for,
    inputs_beside_text,
    load_model,
    load_processor,
    model_class,
    read_config,
    text_config,
)
from ..samples import resolve_model
from .divergence import compare
from .perplexity import paired, perplexity, score
from .report import BenchReport, Measured, Request
from .similarity import similarity_of
from .sizes import kv_cache_size, weights_size
from .speed import measure_speed, release_memory
from .tasks import open_tasks, run_tasks
from .text import load_text
from .windows import Windows, make_windows, window_size


def bench(
    paths: Sequence[str], request: Request, ref: str | None = None, progress: ProgressCallback = ignore_progress
) -> BenchReport:
    """Measure checkpoints, coded or plain, one after the other.

    Args:
        paths: folders, Hub ids or `sample`.
        request: what to measure.
        ref: the unquantized model to compare with.
        progress: called when a measurement begins, and after each of its steps.

    Raises:
        UsageError: a measure needs a reference and there is none, or nothing is requested.
        HlwqError: the first checkpoint cannot be measured. A later failure is stated in the report instead.
    """
    _check_request(paths, request, ref)
    return _Bench(request, ref, progress).run(paths)


def _check_request(paths: Sequence[str], request: Request, ref: str | None) -> None:
    if not paths:
        raise UsageError("There is nothing to measure.", "Name a checkpoint.")
    if not (request.needs_model or request.cosine):
        raise UsageError("No measure is requested.", "Use --ppl, --kld, --cosine, --speed or --tasks.")
    for option, value in (("--kv-bits", request.kv_bits), ("--gpu-memory", request.expert_budget)):
        if value is not None and not request.needs_model:
            raise UsageError(
                f"{option} has no effect on the requested measures.", "Use --ppl, --kld, --speed or --tasks."
            )
    if ref is None and (request.kld or request.cosine):
        raise UsageError("--kld and --cosine compare with a reference.", "Give the unquantized model with --ref.")
    how: dict[str, Any] = {"device": request.device, "dtype": request.dtype}
    for path in paths:
        check_loadable(path, execution=request.execution, expert_budget=request.expert_budget, **how)
    if ref is not None:
        check_loadable(ref, **how)


class _Bench:
    """One run of `bench`: what its checkpoints have in common, and the figures so far."""

    def __init__(self, request: Request, ref: str | None, progress: ProgressCallback) -> None:
        self.request = request
        self.ref = ref
        self.progress = progress
        self.paths: tuple[str, ...] = ()
        self.task_manager = open_tasks(request.tasks, request.task_folder) if request.tasks else None
        self.windows: Windows | None = None
        self.vocabulary: tuple[str, int] | None = None
        self.reference: Measured | None = None
        self.reference_model: Any = None
        self.reference_nlls: torch.Tensor | None = None
        self.measured: list[Measured] = []

    def run(self, paths: Sequence[str]) -> BenchReport:
        """Measure the reference, then each checkpoint; a failure after the first of them ends the run early."""
        self.paths = tuple(paths)
        configs = _configs([*([self.ref] if self.ref else []), *paths], self.request)
        note, failed = self._read_text(self.ref or paths[0], configs), ""
        try:
            if self.ref is not None:
                self._measure_reference(self.ref)
            for path in paths:
                self.measured.append(self._measure(path))
        except (HlwqError, MemoryError, RuntimeError) as error:
            if not self.measured and (self.reference is None or isinstance(error, HlwqError)):
                raise
            failed = _sentence(error)
        protocol = self.windows.protocol if self.windows else None
        return BenchReport(protocol, note, self.reference, tuple(self.measured), failed)

    def _read_text(self, path: str, configs: Mapping[str, Any]) -> str:
        """Cut the text into windows of tokens, if a measure reads it; return the remark on the text."""
        r = self.request
        if not (r.ppl or r.kld):
            return ""
        context = _shortest_context(configs, r)
        text = load_text(r.data)
        self.windows = make_windows(text, _tokenizer(path), r.protocol, r.window, r.windows, context)
        notes = (text.note, *(overlap_note(each, self.windows.ids) for each in self.paths))
        return " ".join(note for note in notes if note)

    def _measure_reference(self, ref: str) -> None:
        found = Measured(ref, *weights_size(ref))
        if self.request.needs_model:
            model, seconds = self._load(ref)
            found = replace(found, load_seconds=seconds)
            if self.windows is not None and not self.request.kld:
                self.reference_nlls = score(model, self.windows, self._progress_of(ref))
                found = replace(found, perplexity=perplexity(self.reference_nlls))
            found = self._run_model(found, model)
            if self.request.kld:  # its perplexity is measured together with the first checkpoint's divergence
                self.reference_model = model
        self.reference = found

    def _measure(self, path: str) -> Measured:
        found = Measured(path, *weights_size(path))
        if self.request.needs_model:
            found = self._measure_model(found)
        if self.request.cosine and self.ref is not None:
            found = replace(found, similarity=similarity_of(path, self.ref, self._progress_of(path)))
        return found

    def _measure_model(self, found: Measured) -> Measured:
        r = self.request
        model, seconds = self._load(found.path, kv_bits=r.kv_bits, expert_budget=r.expert_budget)
        size = None if r.kv_bits is None else kv_cache_size(model, r.kv_bits)
        found = replace(found, load_seconds=seconds, kv_cache=size)
        if self.windows is not None:
            found = self._compare(found, model, self.windows) if r.kld else self._score(found, model, self.windows)
        return self._run_model(found, model)

    def _compare(self, found: Measured, model: Any, windows: Windows) -> Measured:
        """Add divergence from the reference, and both perplexities."""
        c = compare(model, self.reference_model, windows, self._progress_of(found.path))
        if self.reference is not None:
            self.reference = replace(self.reference, perplexity=c.reference_perplexity)
        return replace(found, perplexity=c.perplexity, delta=c.delta, divergence=c.divergence)

    def _score(self, found: Measured, model: Any, windows: Windows) -> Measured:
        """Add perplexity, and its difference from the reference's."""
        nlls = score(model, windows, self._progress_of(found.path))
        delta = None if self.reference_nlls is None else paired(nlls, self.reference_nlls)
        return replace(found, perplexity=perplexity(nlls), delta=delta)

    def _run_model(self, found: Measured, model: Any) -> Measured:
        """Add speed and task scores."""
        r = self.request
        if r.speed:
            self._announce(f"speed of {found.path}")
            found = replace(found, speed=measure_speed(model))
        if r.tasks:
            self._announce(f"tasks of {found.path}")
            scores = run_tasks(model, _tokenizer(found.path), r.tasks, self.task_manager, r.task_limit)
            found = replace(found, tasks=scores)
        return found

    def _load(self, path: str, **options: Any) -> tuple[Any, float]:
        """Return a model and the seconds that loading it took."""
        release_memory()
        start = time.perf_counter()
        self._announce(f"loading {path}")
        r = self.request
        model = load_model(path, device=r.device, dtype=r.dtype, execution=r.execution, **options)
        if self.windows is not None:
            self._check_vocabulary(path, text_config(model.config).vocab_size)
        return model, time.perf_counter() - start

    def _check_vocabulary(self, path: str, size: int) -> None:
        """Raise UsageError if a model cannot read the tokens of the first model."""
        first, expected = self.vocabulary = self.vocabulary or (path, size)
        if size != expected:
            raise UsageError(
                f"{path} has a vocabulary of {size}, {first} one of {expected}.",
                "Compare a model with the one it was made from.",
            )

    def _announce(self, stage: str) -> None:
        self.progress(Progress(stage, 0, 1, "steps"))

    def _progress_of(self, path: str) -> ProgressCallback:
        """Return a callback that names the checkpoint in the stage of each event."""
        return lambda event: self.progress(replace(event, stage=f"{event.stage} of {path}"))


def _configs(paths: Sequence[str], request: Request) -> dict[str, Any]:
    """Return the configs of all checkpoints that will be loaded, by path.

    Raises:
        UsageError: a model has no perplexity, and this or a divergence is requested; or it does not run on text alone.
        UnsupportedError: a model does not generate text.
    """
    if not request.needs_model:
        return {}
    configs = {}
    for path in paths:
        config = configs[path] = read_config(resolve_model(path))
        loaded_class = model_class(config)
        check_answers_text(path, loaded_class)
        if config.is_encoder_decoder and (request.ppl or request.kld):
            raise UsageError(
                f"{path} is an encoder-decoder, and perplexity needs a causal model.", "Use --speed or --cosine."
            )
        if needed := inputs_beside_text(loaded_class):
            raise UsageError(
                f"{path} ({loaded_class.__name__}) needs {' and '.join(needed)} with every text, and only text is "
                "measured.",
                "Use --cosine.",
            )
    return configs


def _shortest_context(configs: Mapping[str, Any], request: Request) -> int | None:
    """Return the shortest context of the models, if a window is longer; else None.

    Raises:
        UsageError: the given window is longer than a model with a table of positions can read.
    """
    size = window_size(request.protocol, request.window)
    found = {path: context_for(config, size) for path, config in configs.items()}
    short = {path: context for path, context in found.items() if context is not None}
    for path, context in short.items():
        if request.window is not None and context.is_hard:
            raise UsageError(
                f"A window of {size:,} tokens is longer than the context of {path}, which is {context.tokens:,}.",
                "Use a shorter --window, or omit it.",
            )
    return min((context.tokens for context in short.values()), default=None)


def _tokenizer(path: str) -> Any:
    processor = load_processor(path)
    return getattr(processor, "tokenizer", processor)


def _sentence(error: Exception) -> str:
    """Say what went wrong; torch, safetensors and CUDA each report a lack of memory in their own words."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return f"there is not enough memory ({first.rstrip('.')})."
    return first
