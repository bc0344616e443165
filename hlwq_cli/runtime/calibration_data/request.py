"""What a user asks a model to be calibrated on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError

OWN_TEXT = "own"
"""The value of --calibrate that stands for the model's own text."""
DEFAULT_TOKENS = 32_768
_LEAST_TOKENS = 512


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate with.

    Attributes:
        data: `own`, the model's own text; a .txt or .jsonl file; `sample`, the bundled text;
            `DATASET[:CONFIG[:SPLIT]]` of the Hub; or a .safetensors file of kept tokens. None with an imatrix.
        imatrix: an importance matrix of llama.cpp instead.
        tokens: how many tokens to use, at most; kept tokens are all used.
        seed: of own text, and of the order of a dataset's rows.
        keep: whether the result gets calibration.safetensors.
    """

    data: str | None = OWN_TEXT
    imatrix: Path | None = None
    tokens: int = DEFAULT_TOKENS
    seed: int = 0
    keep: bool = True

    def __post_init__(self) -> None:
        if self.data is not None and self.imatrix is not None:
            raise UsageError("--calibrate and --imatrix cannot be used together.", "Give one of them.")
        if self.tokens < _LEAST_TOKENS:
            raise UsageError(f"--calibration-tokens {self.tokens} is too few.", f"Use at least {_LEAST_TOKENS}.")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed} is not valid.", "Use a number from 0 on.")
