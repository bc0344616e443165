"""What a user allows experts to take on the GPU."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UsageError
from ...sizes import parse_size


@dataclass(frozen=True)
class ExpertBudget:
    """How much of the GPU experts may take; exactly one attribute is set.

    Attributes:
        slots: experts of each layer on the GPU.
        gpu_memory: bytes that the whole process may take there.
    """

    slots: int | None = None
    gpu_memory: int | None = None

    @classmethod
    def parse(cls, slots: int | None, gpu_memory: str | int | None) -> ExpertBudget | None:
        """Read what a user asked for; None if that is nothing.

        Raises:
            UsageError: both are given, or a number is not valid.
        """
        if slots is None and gpu_memory is None:
            return None
        if slots is not None and gpu_memory is not None:
            raise UsageError(
                "expert_cache_slots and gpu_memory both set the number of experts on the GPU.", "Give one of them."
            )
        if slots is not None and slots < 1:
            raise UsageError(f"{slots} is not a valid number of expert slots.", "Use at least 1.")
        return cls(slots, None if gpu_memory is None else parse_size(str(gpu_memory)))
