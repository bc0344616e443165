"""Where decoding over a static cache stands: the same for all its layers."""

from __future__ import annotations

import torch


class StaticDecodeUnsupported(Exception):
    """A model that cannot decode on a static cache; its sentence says why."""


class DecodePosition:
    """Where decoding stands, shared by the layers of a cache.

    Attributes:
        current: int64 (1,), the column of the token that is being decoded.
        seen: bool (batch, capacity), false where the prompt was padded.
        slots: int64 (1,) by ring size, where that token's key goes.
        coded: int64 (1,), columns that lie in codes, in layers that hold some.
        lengths: int64 (2,), those, and the columns from there to the one being decoded.
        length: columns that attention looks at, at least column + 1; an int, fixed in a captured step.
        prefilling: whether the prompt is being read, from column 0 on.
    """

    def __init__(self, batch: int, capacity: int, device: torch.device) -> None:
        self.current = torch.zeros(1, dtype=torch.int64, device=device)
        self.seen = torch.ones(batch, capacity, dtype=torch.bool, device=device)
        self.slots: dict[int, torch.Tensor] = {}
        self.coded = torch.zeros_like(self.current)
        self.lengths = torch.zeros(2, dtype=torch.int64, device=device)
        self.length = capacity
        self.prefilling = True

    def refuse_in_step(self) -> None:
        """A number asked for in Python would be frozen in a captured step, and the answer silently wrong.

        Raises:
            StaticDecodeUnsupported: in a step.
        """
        if not self.prefilling:
            raise StaticDecodeUnsupported("its forward asks the cache for lengths at every step")
