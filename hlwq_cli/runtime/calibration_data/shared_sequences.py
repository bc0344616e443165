"""Whether a checkpoint was calibrated on the text that it is measured on: its figures would be too good."""

from __future__ import annotations

import torch
from safetensors import SafetensorError

from ...checkpoint import open_coded
from ...errors import HlwqError
from .tokens import kept_ids

NGRAM = 16
"""Tokens of a sequence that is looked for: long enough that two texts seldom share one by chance."""
WARN_ABOVE = 0.01
"""Fraction of the measured text that may be calibration text without a warning: chat templates repeat themselves."""
_BASE = 0x5851F42D4C957F2D


def overlap_note(path: str, measured: torch.Tensor) -> str:
    """Return a warning if a coded checkpoint was calibrated on part of int64 (windows, tokens); else nothing.

    A checkpoint that is not coded, not calibrated, or does not keep its tokens gives none.
    """
    try:
        checkpoint = open_coded(path)
        try:
            kept = (checkpoint.manifest.calibration or {}).get("file")
            ids = kept_ids(checkpoint.path(kept)) if isinstance(kept, str) else None
        finally:
            checkpoint.close()
    except (HlwqError, SafetensorError, OSError):
        return ""
    shared = 0.0 if ids is None else overlap(ids, measured)
    if shared <= WARN_ABOVE:
        return ""
    return f"{path} was calibrated on {shared:.0%} of this text, so its figures are too good: use another text."


def overlap(calibration: torch.Tensor, measured: torch.Tensor) -> float:
    """Return the fraction of `measured` that is in `calibration`, counted in sequences of 16 tokens.

    Args:
        calibration: int64 (sequences, tokens).
        measured: int64 (windows, tokens).
    """
    wanted, known = _hashes(measured), _hashes(calibration)
    if not wanted.numel() or not known.numel():
        return 0.0
    return float(torch.isin(wanted, known).double().mean())


def _hashes(rows: torch.Tensor) -> torch.Tensor:
    """Return a 64-bit hash of each sequence of NGRAM tokens within a row."""
    if rows.shape[1] < NGRAM:
        return torch.empty(0, dtype=torch.int64)
    total = torch.zeros(rows.shape[0], rows.shape[1] - NGRAM + 1, dtype=torch.int64)
    for at in range(NGRAM):  # int64 wraps around, as a hash may
        total = total * _BASE + rows[:, at : at + total.shape[1]] + 1
    return (total ^ (total >> 31)).flatten()
