"""Error of each coded tensor against its source: cosine and relative squared error, the worst first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from ..checkpoint import CodedCheckpoint, Source, open_coded, open_source
from ..checkpoint.format import TensorRecord
from ..checkpoint.io import SLICE_WEIGHTS
from ..codec import lloyd_max
from ..errors import UsageError
from ..progress import Progress, ProgressCallback, ignore_progress

_SUSPICIOUS_RATIO = 1.25  # of error to expected error


@dataclass(frozen=True)
class TensorSimilarity:
    """Error of one coded tensor against its source.

    Attributes:
        name: name of the coded tensor.
        bits: width of its codes.
        cosine: <W, W'> / (||W|| ||W'||).
        error: ||W - W'||^2 / ||W||^2.
        expected: error of this width on Gaussian weights, without a scale search.
        sick: whether the tensor is suspicious: its error is more than 1.25 times the expected one. A key in JSON.
    """

    name: str
    bits: int
    cosine: float
    error: float
    expected: float
    sick: bool


def similarity_of(path: str, ref: str, progress: ProgressCallback) -> tuple[TensorSimilarity, ...]:
    """Open a coded checkpoint and its source, and return their `similarity`."""
    checkpoint, source = open_coded(path), open_source(ref)
    try:
        return similarity(checkpoint, source, progress)
    finally:
        checkpoint.close()
        source.close()


def similarity(
    checkpoint: CodedCheckpoint, source: Source, progress: ProgressCallback = ignore_progress
) -> tuple[TensorSimilarity, ...]:
    """Compare every coded tensor with its source, a slice at a time.

    Args:
        checkpoint: a coded checkpoint.
        source: the checkpoint that it was made from.
        progress: called after each tensor.

    Returns:
        A record for each coded tensor, the largest error relative to the expected error first.

    Raises:
        UsageError: the source lacks a tensor, or has it in another shape.
    """
    found = []
    for i, record in enumerate(checkpoint.manifest.coded):
        found.append(_compare(checkpoint, source, record))
        progress(Progress("weights", i + 1, len(checkpoint.manifest.coded), "steps"))
    return tuple(sorted(found, key=lambda t: -t.error / t.expected))


def codebook_error(bits: int) -> float:
    """Return the relative squared error of the Lloyd-Max quantizer of N(0, 1): 1 - E[Q(Z)^2]."""
    c = lloyd_max(bits)
    edges = [-math.inf, *((a + b) / 2 for a, b in pairwise(c)), math.inf]
    cdf = [0.5 * (1 + math.erf(e / math.sqrt(2))) for e in edges]
    return 1.0 - sum(x * x * (high - low) for x, low, high in zip(c, cdf, cdf[1:], strict=False))


def _compare(checkpoint: CodedCheckpoint, source: Source, record: TensorRecord) -> TensorSimilarity:
    parts = record.parts(source.tensors)
    if parts is None:
        raise UsageError(
            f"{source.id} has no {record.sources[0]} of the right shape.", "Give the model it was made from."
        )
    step = max(1, SLICE_WEIGHTS // record.shape[-1])
    dot = ours = theirs = difference = 0.0
    first = 0
    for part in parts:
        for start in range(0, part.count, step):
            n = min(step, part.count - start)
            w = part.read(source, start, n).double()
            v = checkpoint.decode_rows(record, first + start, n).double()
            dot += float((w * v).sum())
            theirs += float(w.square().sum())
            ours += float(v.square().sum())
            difference += float((w - v).square().sum())
        first += part.count
    error = difference / theirs if theirs else 0.0
    cosine = dot / math.sqrt(ours * theirs) if ours and theirs else 1.0
    expected = codebook_error(record.bits)
    return TensorSimilarity(record.name, record.bits, cosine, error, expected, error > _SUSPICIOUS_RATIO * expected)
