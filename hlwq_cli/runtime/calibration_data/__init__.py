"""What a model is calibrated on: its own text, a given text, pictures, kept tokens, or an imatrix of llama.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .prepare import CalibratedModel, make_calibration
    from .request import DEFAULT_TOKENS, OWN_TEXT, CalibrationRequest
    from .shared_sequences import overlap, overlap_note
    from .tokens import CALIBRATION_FILE, CalibrationTokens, load_tokens

__all__ = [
    "CALIBRATION_FILE",
    "DEFAULT_TOKENS",
    "OWN_TEXT",
    "CalibratedModel",
    "CalibrationRequest",
    "CalibrationTokens",
    "load_tokens",
    "make_calibration",
    "overlap",
    "overlap_note",
]
__getattr__ = lazy_names(
    __name__,
    {
        "shared_sequences": (
            "overlap",
            "overlap_note",
        ),
        "prepare": (
            "CalibratedModel",
            "make_calibration",
        ),
        "request": (
            "DEFAULT_TOKENS",
            "OWN_TEXT",
            "CalibrationRequest",
        ),
        "tokens": (
            "CALIBRATION_FILE",
            "CalibrationTokens",
            "load_tokens",
        ),
    },
)
