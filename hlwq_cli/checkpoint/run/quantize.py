"""The run of `quantize`: open the source, make the plan, encode shard after shard, finalize the folder.

The model is never in memory as a whole. A killed run is resumed after its finished shards.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ...devices import find_devices
from ...errors import GateMissedError, OutOfSpaceError, UsageError
from ...progress import Progress, ProgressCallback, ignore_progress
from ...sizes import format_size
from ..format import (
    DEFAULT_SHARD_BYTES,
    Manifest,
    Shard,
    ShardRecord,
    card_warnings,
    divide,
    fingerprint,
)
from ..io import PREFETCH_FILES, Source, check_unlocked, is_repo_id, open_source
from ..plan import CodedTensor, Plan, Recipe, check_coded, make_plan, plan_warnings
from .calibration import CalibratedCoder, Calibration
from .devices import Device, join, peak_bytes, warm_up, worker_count
from .finalize import finalize
from .journal import Journal
from .output_folder import PRIVATE_SOURCE, begin, check_output_folder, locked_output, written_files
from .pipeline import Pipeline, WrittenTensor
from .slices import Slice
from .trace import Trace
from .worker_pool import RunOptions

_CARD = "README.md"
_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class QuantizeResult:
    """The result of a run.

    Attributes:
        path: the output folder.
        manifest: its manifest.
        unquantized_share: fraction of the source's bytes that stayed uncoded.
        resumed_shards: number of shards that an earlier, killed run had finished.
        already_complete: whether the folder held this result already, so that nothing was done.
        warnings: sentences about files that were left out, and about matrices that stayed uncoded.
    """

    path: Path
    manifest: Manifest
    unquantized_share: float
    resumed_shards: int = 0
    already_complete: bool = False
    warnings: tuple[str, ...] = ()


def quantize(
    model: str,
    out: str | os.PathLike[str],
    recipe: Recipe,
    *,
    revision: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    max_unquantized: float | None = None,
    overwrite: bool = False,
    base_model: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    delete_source: bool = False,
    progress: ProgressCallback = ignore_progress,
    trace: Trace | None = None,
    calibration: Calibration | None = None,
) -> QuantizeResult:
    """Quantize a checkpoint.

    Args:
        model: a folder or a Hub id.
        out: the folder to write.
        recipe: which tensors are coded, and how.
        revision: branch, tag or commit of a Hub id.
        max_shard_bytes: largest size of an output file.
        max_unquantized: fail, before any work, if more than this fraction of the bytes would stay uncoded.
        overwrite: replace an earlier result or unfinished run of hlwq in `out`.
        base_model: Hub id that the card names as the origin of a local folder.
        device: where to encode: `auto`, `cpu`, `cuda`, or several, such as `cuda:0,cuda:1`. It never changes the bytes.
        threads: number of worker threads; by default one per processor. It never changes the bytes.
        delete_source: fetch the files of a Hub id into the output folder, at most two at a time, and remove each when
            it has been read.
        progress: called after each slice and shard.
        trace: records what each thread does.
        calibration: where to get moments of layers' inputs, to code with error feedback. Then the bytes are the same
            for the same calibration, kind of device and versions only.

    Raises:
        GateMissedError: nothing would be coded, or more than `max_unquantized` of the bytes would stay uncoded.
        HlwqError: see hlwq_cli/errors.py. The earlier content of `out` is then still there, and finished shards of
            this run are kept for the next run.
    """
    trace = trace or Trace(recording=False)
    devices = tuple(Device(found) for found in find_devices(device))
    starting = warm_up(devices, recipe.scheme, trace)
    source = None
    try:
        with trace.span("plan"):
            check_unlocked(Path(out))
            source = open_source(model, revision)
            check_origin(source, delete_source, base_model)
            if calibration is not None:
                check_calibration(recipe, delete_source)
            plan = make_plan(source, recipe)
            check_coded(plan)
            check_unquantized(plan, max_unquantized)
            run = QuantizeRun(plan, Path(out), max_shard_bytes, base_model, progress, calibration)
        join(starting)  # otherwise workers would take Python's global lock from the threads that start their kernels
        private = Path(out) / PRIVATE_SOURCE if delete_source else None
        return run.run(overwrite, RunOptions(devices, worker_count(devices, threads), trace, private))
    finally:
        if source is not None:
            source.close()
        join(starting)


def check_origin(source: Source, delete_source: bool, base_model: str | None) -> None:
    """Raise UsageError if an option is not valid for this source."""
    if delete_source and source.repo is None:
        raise UsageError(f"--delete-source needs a Hub id, and {source.id} is a folder.", "Leave it out.")
    if base_model is not None and not is_repo_id(base_model):
        raise UsageError(f"--base-model {base_model!r} is not a valid repository id.", "Write owner/name.")


def check_calibration(recipe: Recipe, delete_source: bool) -> None:
    """Raise UsageError if a run cannot be calibrated with these options."""
    if recipe.scheme.scale != "log8":
        raise UsageError(
            f"Calibrated weights need scales of kind log8, not {recipe.scheme.scale}.",
            "Choose another recipe, or leave --calibrate out.",
        )
    if delete_source:
        raise UsageError(
            "--delete-source cannot be used with --calibrate, which reads files more than once.",
            "Leave one of them out.",
        )


def check_unquantized(plan: Plan, limit: float | None) -> None:
    """Raise GateMissedError if a plan leaves more than the fraction `limit` of the bytes uncoded."""
    if limit is not None and plan.unquantized_share > limit:
        raise GateMissedError(
            f"{plan.unquantized_share:.1%} of the bytes would stay uncoded, more than the {limit:.1%} allowed.",
            "`hlwq quantize --dry-run` says which tensors and why.",
        )


class QuantizeRun:
    """A run into one output folder.

    Args:
        plan: what to code and what to keep.
        out: the output folder.
        max_shard_bytes: largest size of a shard.
        base_model: Hub id for the card, or None.
        progress: called after each slice and shard.
        calibration: of the coded tensors, or None.

    Attributes:
        shards: all shards of the result.
        fingerprint: everything that decides the bytes.
        journal: the shards that are finished.
        done_bytes: bytes of the source that are done.
        warnings: sentences for the user about the plan and the source's card.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        max_shard_bytes: int,
        base_model: str | None,
        progress: ProgressCallback,
        calibration: Calibration | None = None,
    ) -> None:
        self.plan, self.out, self.progress, self.calibration = plan, out, progress, calibration
        self.shards = divide(plan.tensors, max_shard_bytes)
        details = None if calibration is None else calibration.fingerprint
        self.fingerprint = fingerprint(plan, max_shard_bytes, base_model, details)
        self.journal = Journal(out, self.fingerprint, written_files(plan.source))
        self.done_bytes = 0
        self.warnings = (*plan_warnings(plan), *_card_warnings(plan.source))

    def run(self, overwrite: bool, options: RunOptions) -> QuantizeResult:
        """Write what is missing in the folder, then finalize it; see `quantize` for `overwrite` and the errors."""
        finished, _ = check_output_folder(self.out, self.fingerprint, overwrite)
        if finished is not None:
            return self._result(finished, already_complete=True)
        with locked_output(self.out):
            finished, replaced = check_output_folder(self.out, self.fingerprint, overwrite)
            if finished is not None:  # by another process, since the look before
                return self._result(finished, already_complete=True)
            return self._run(replaced, options)

    def _run(self, replaced: list[str], options: RunOptions) -> QuantizeResult:
        self._check_space(replaced, options.private is not None)
        plain = {} if self.calibration is None else self.calibration.prepare(self.plan)
        begin(self.out, self.journal, replaced)
        resumed = len(self.journal.shards)
        self.done_bytes = sum(_source_bytes(s) for s in self.shards if s.file in self.journal.shards)
        missing = [s for s in self.shards if s.file not in self.journal.shards]
        calibrated = self._calibrated(missing, plain)
        with Pipeline(self.plan.source, self.out, missing, options, calibrated) as pipeline:
            with closing(pipeline.run()) as events:
                for event in events:
                    if isinstance(event, Slice):
                        self.done_bytes += event.source_bytes
                        self._report(event.planned.name)
                    else:
                        self._finish(event)
            if calibrated:
                self._run_calibrated(pipeline, calibrated, options)
        self.plan.source.check_unchanged(self.fingerprint["source"])
        options.trace.notes["peak_device_bytes"] = peak_bytes(options.devices)
        with options.trace.span("complete"):
            records = [self.journal.shards[s.file] for s in self.shards]
            details = None if self.calibration is None else (self.calibration, plain)
            manifest = finalize(self.plan, self.out, self.shards, records, self.fingerprint, details)
        return self._result(manifest, resumed)

    def _calibrated(self, missing: Sequence[Shard], plain: Mapping[str, str]) -> set[str]:
        """Return the names of the coded tensors of shards that get moments."""
        if self.calibration is None:
            return set()
        coded = [t for shard in missing for t in shard.planned if isinstance(t, CodedTensor)]
        return {t.name for t in coded if t.name not in plain}

    def _run_calibrated(self, pipeline: Pipeline, calibrated: set[str], options: RunOptions) -> None:
        assert self.calibration is not None
        with (
            CalibratedCoder(self.plan.source, options.trace) as coder,
            closing(self.calibration.layers(calibrated)) as layers,
            closing(pipeline.run_calibrated(layers, coder)) as events,
        ):
            for event in events:
                if isinstance(event, WrittenTensor):
                    self.done_bytes += event.planned.source_bytes
                    self._report(event.layer)
                else:
                    self._finish(event)

    def _finish(self, record: ShardRecord) -> None:
        self.journal.add(record)
        self._report(record.file.name, file_done=True)

    def _result(self, manifest: Manifest, resumed: int = 0, already_complete: bool = False) -> QuantizeResult:
        share = self.plan.unquantized_share
        return QuantizeResult(self.out, manifest, share, resumed, already_complete, self.warnings)

    def _check_space(self, replaced: list[str], with_source: bool) -> None:
        there = {*replaced, *(s.file for s in self.shards)}
        written = sum(p.stat().st_size for name in there if (p := self.out / name).is_file())
        folder = next(p for p in (self.out.absolute(), *self.out.absolute().parents) if p.exists())
        needed = self.plan.output_bytes + self.plan.source.sidecar_bytes - written + _SPARE_BYTES
        needed += self.plan.source.largest_files(PREFETCH_FILES) if with_source else 0
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OutOfSpaceError(
                f"{self.out} needs {format_size(needed)} of disk and has {format_size(free)}.",
                "Free some or choose another.",
            )

    def _report(self, stage: str, file_done: bool = False) -> None:
        done, total = self.done_bytes, self.plan.source_bytes
        files_done, files = len(self.journal.shards), len(self.shards)
        self.progress(Progress(stage, done, total, file_done=file_done, files_done=files_done, files=files))


def _card_warnings(source: Source) -> tuple[str, ...]:
    return card_warnings(source.path(_CARD)) if _CARD in source.sidecar_files else ()


def _source_bytes(shard: Shard) -> int:
    return sum(planned.source_bytes for planned in shard.planned)
