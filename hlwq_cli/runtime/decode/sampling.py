"""Settings of an answer, as the options of `generate`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...errors import UsageError


def generate_options(
    tokenizer: Any, max_new_tokens: int, temperature: float, top_p: float, seed: int | None, stop: Sequence[str]
) -> dict[str, Any]:
    """Return the options of `generate`, and seed torch if a seed is given.

    Raises:
        UsageError: temperature or top_p is out of range.
    """
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise UsageError(
            f"temperature={temperature} with top_p={top_p} is not valid.",
            "Use a temperature of at least 0, and a top_p above 0 and at most 1.",
        )
    if seed is not None:
        torch.manual_seed(seed)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p}
    else:
        options |= {"temperature": None, "top_p": None, "top_k": None}
    if stop:
        options["stop_strings"] = list(stop)
    return {**options, "tokenizer": tokenizer}
