"""Calibration: run the original model layer by layer over tokens, and sum what its linear layers take in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .inputs import PASS_TOKENS, Inputs, token_inputs
    from .stream import StreamCalibration

__all__ = ["PASS_TOKENS", "Inputs", "StreamCalibration", "token_inputs"]
__getattr__ = lazy_names(
    __name__,
    {
        "inputs": ("PASS_TOKENS", "Inputs", "token_inputs"),
        "stream": ("StreamCalibration",),
    },
)
