"""Where decoding over a static cache stands, for all layers of the cache."""

from __future__ import annotations

import torch


class StaticDecodeUnsupported(Exception):
    """A model cannot decode on a static cache; the message is the reason."""


class DecodePosition:
    """Where decoding stands, shared by the layers of a cache.

    A position is a token's place in the padded sequence, from 0 on.

    Attributes:
        current: int64 (1,), position of the token that is being decoded.
        seen: bool (batch, capacity), false where the prompt is padded.
        slots: by ring size, int64 (1,): the slot of that token's key and value.
        coded: int64 (1,), positions that are in codes, in layers that store codes.
        lengths: int64 (2,), `coded`, and the positions from there up to the current one.
        length: positions that attention reads, at least current + 1; an int, so a captured step fixes it.
        prefilling: whether the prompt is being read, from position 0 on.
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
        """Raise StaticDecodeUnsupported in a decode step.

        A captured step would freeze a number that Python asks for, and give wrong answers without an error.
        """
        if not self.prefilling:
            raise StaticDecodeUnsupported("its forward asks the cache for lengths at every step")


class StaticLengths:
    """What a layer of a static cache answers when it is asked for lengths.

    Attributes:
        position: where decoding stands.
        max_length: positions or slots that the layer has room for.
    """

    position: DecodePosition
    max_length: int

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of a prompt's keys; decode steps bring their own mask."""
        self.position.refuse_in_step()
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return 0, as before the prompt."""
        self.position.refuse_in_step()
        return 0

    def get_max_length(self) -> int:
        """Return what the layer has room for."""
        return self.max_length
