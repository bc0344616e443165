"""The run: read a slice, code it, write it, and so on to the end.

No model is ever in memory, and a killed run continues where its last whole shard ends.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import __version__
from ..codec import SquaredError
from ..errors import GateMissedError, OutOfSpaceError
from ..sizes import format_size
from .card import model_card
from .integrity import file_record
from .jobs import CodedTensor
from .journal import Journal
from .manifest import JOURNAL, MANIFEST, Manifest, fingerprint
from .output import copy_companions, look_at_folder, make_folder, quantization_config
from .plan import Plan, make_plan
from .recipe import Recipe
from .records import FileRecord, ShardRecord, coded_record, kept_record
from .shards import Shard, ShardWriter, divide, outputs, write_file, write_index, write_json
from .slices import Slice, code_slice, slices
from .source import INDEX, open_source

_SPARE_BYTES = 64 * 2**20
DEFAULT_SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Progress:
    """How far a run is: after a slice, and with `shard` set after a finished shard."""

    tensor: str
    done_bytes: int
    total_bytes: int
    shard: str = ""
    shards_done: int = 0
    shards: int = 0


@dataclass(frozen=True)
class QuantizeResult:
    """What a run made.

    Attributes:
        path: the folder.
        manifest: what it holds.
        unquantized_share: share of the source's bytes that stayed uncoded.
        resumed_shards: shards that an earlier, killed run had finished.
        already_complete: the folder held this very result, and nothing was done.
    """

    path: Path
    manifest: Manifest
    unquantized_share: float
    resumed_shards: int = 0
    already_complete: bool = False


def _silent(_: Progress) -> None:
    pass


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
    threads: int | None = None,
    progress: Callable[[Progress], None] = _silent,
) -> QuantizeResult:
    """Code a checkpoint.

    Args:
        model: a folder or a Hub id.
        out: the folder to write.
        recipe: what is coded how.
        revision: of a Hub id.
        max_shard_bytes: largest size of an output file.
        max_unquantized: fail, before any work, when more than this share of the bytes would stay uncoded.
        overwrite: replace an earlier result or unfinished run of hlwq in `out`.
        base_model: Hub id that the card names as the origin of a local folder.
        threads: that code at once; by default one a processor. The bytes do not depend on it.
        progress: called after each slice and shard.

    Raises:
        HlwqError: see hlwq_cli/errors.py. What was in `out` before is then still there, and finished shards of this
            run are kept for the next.
    """
    source = open_source(model, revision)
    try:
        plan = make_plan(source, recipe)
        check_unquantized(plan, max_unquantized)
        run = _Run(plan, Path(out), max_shard_bytes, base_model, threads or os.cpu_count() or 1, progress)
        return run.start(overwrite)
    finally:
        source.close()


def check_unquantized(plan: Plan, limit: float | None) -> None:
    """Raise GateMissedError where a plan leaves more than `limit` of the bytes uncoded."""
    if limit is not None and plan.unquantized_share > limit:
        raise GateMissedError(
            f"{plan.unquantized_share:.1%} of the bytes would stay uncoded, more than the {limit:.1%} allowed.",
            "`hlwq quantize --dry-run` says which tensors and why.",
        )


class _Run:
    def __init__(
        self,
        plan: Plan,
        out: Path,
        max_shard_bytes: int,
        base_model: str | None,
        threads: int,
        progress: Callable[[Progress], None],
    ) -> None:
        self.plan, self.out, self.base_model, self.threads, self.progress = plan, out, base_model, threads, progress
        self.shards = divide(plan.jobs, max_shard_bytes)
        self.fingerprint = fingerprint(plan, max_shard_bytes, base_model)
        self.journal = Journal(out, self.fingerprint)
        self.done_bytes = 0

    def start(self, overwrite: bool) -> QuantizeResult:
        finished, replaced = look_at_folder(self.out, self.fingerprint, overwrite)
        if finished is not None:
            return QuantizeResult(self.out, finished, self.plan.unquantized_share, already_complete=True)
        self._check_space(replaced)
        make_folder(self.out, replaced)
        self.journal.open()
        resumed = len(self.journal.shards)
        self.done_bytes = sum(_source_bytes(s) for s in self.shards if s.file in self.journal.shards)
        with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for shard in self.shards:
                if shard.file not in self.journal.shards:
                    self.journal.add(self._write_shard(shard, pool))
                    self._report("", shard.file)
        return QuantizeResult(self.out, self._complete(), self.plan.unquantized_share, resumed)

    def _check_space(self, replaced: list[str]) -> None:
        there = {*replaced, *(s.file for s in self.shards)}
        written = sum(p.stat().st_size for name in there if (p := self.out / name).is_file())
        folder = next(p for p in (self.out.absolute(), *self.out.absolute().parents) if p.exists())
        needed = self.plan.output_bytes - written + _SPARE_BYTES
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OutOfSpaceError(
                f"{self.out} needs {format_size(needed)} of disk and has {format_size(free)}.",
                "Free some or choose another.",
            )

    def _write_shard(self, shard: Shard, pool: ThreadPoolExecutor) -> ShardRecord:
        writer = ShardWriter(self.out, shard)
        try:
            costs = self._fill(shard, writer, pool)
            hashes = list(pool.map(lambda job: writer.hash_tensors([t[0] for t in outputs(job)]), shard.jobs))
            file = FileRecord(shard.file, writer.size, writer.finish())
        except BaseException:
            writer.abandon()
            raise
        coded, kept = [], []
        for job, sha256 in zip(shard.jobs, hashes, strict=True):
            if isinstance(job, CodedTensor):
                coded.append(coded_record(job, sha256, costs[job.name].relative))
            else:
                kept.append(kept_record(job, sha256))
        return ShardRecord(file, tuple(coded), tuple(kept))

    def _fill(self, shard: Shard, writer: ShardWriter, pool: ThreadPoolExecutor) -> dict[str, SquaredError]:
        """Keep a bounded number of slices in flight; add up their costs in the order of the slices."""
        costs: dict[str, SquaredError] = {}
        flying: deque[tuple[Slice, Future[SquaredError]]] = deque()

        def land() -> None:
            piece, future = flying.popleft()
            costs[piece.name] = costs.get(piece.name, SquaredError()) + future.result()
            self.done_bytes += piece.source_bytes
            self._report(piece.name)

        try:
            for piece in slices(shard):
                flying.append((piece, pool.submit(code_slice, self.plan.source, piece, writer)))
                if len(flying) > 2 * self.threads:
                    land()
            while flying:
                land()
        finally:
            for _, future in flying:
                future.cancel()
            for _, future in flying:
                if not future.cancelled():
                    future.exception()
        return costs

    def _report(self, tensor: str, shard: str = "") -> None:
        done = len(self.journal.shards)
        self.progress(Progress(tensor, self.done_bytes, self.plan.source_bytes, shard, done, len(self.shards)))

    def _complete(self) -> Manifest:
        """Write all that is not weights, then the manifest, then forget the journal."""
        records = [self.journal.shards[s.file] for s in self.shards]
        write_index(self.out, self.shards)
        companions = copy_companions(self.plan.source, self.out)
        config = dict(self.plan.source.config)
        config["quantization_config"] = quantization_config(self.plan)
        write_json(self.out / "config.json", config)
        manifest = self._manifest(records, ())
        write_file(self.out / "README.md", model_card(self.plan, manifest, self.base_model).encode())
        names = [*companions, "README.md", "config.json"]
        names += [INDEX] if len(self.shards) > 1 else []
        others = tuple(file_record(self.out, n) for n in sorted(names))
        manifest = self._manifest(records, others)
        write_file(self.out / MANIFEST, manifest.dump())
        (self.out / JOURNAL).unlink()
        return manifest

    def _manifest(self, records: list[ShardRecord], others: tuple[FileRecord, ...]) -> Manifest:
        source = self.plan.source
        return Manifest(
            fingerprint=self.fingerprint,
            tool={"name": "hlwq", "version": __version__},
            source={"id": _public_id(source.id, source.repo is not None), "revision": source.revision},
            rule=self.plan.rule,
            source_bytes=self.plan.source_bytes,
            files=(*(r.file for r in records), *others),
            coded=tuple(t for r in records for t in r.coded),
            kept=tuple(t for r in records for t in r.kept),
            dropped=tuple({"name": d.info.name, "reason": d.reason} for d in self.plan.dropped),
        )


def _public_id(model: str, is_repo: bool) -> str:
    """A folder's name without the path to it, which is nobody's business."""
    return model if is_repo else Path(model).resolve().name


def _source_bytes(shard: Shard) -> int:
    return sum(j.source_bytes if isinstance(j, CodedTensor) else j.info.nbytes for j in shard.jobs)
