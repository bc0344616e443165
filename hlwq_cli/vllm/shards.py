"""The columns of a coded matrix that a rank of tensor parallelism holds.

A block of n columns has one scale, and its codes are whole words of each bit plane for n of 32 or more. So a rank
holds whole blocks: those that its columns touch. Where columns begin inside a block, zeros go before the activations.
A block that two ranks share is held by both, and their products add up, because a product is linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from hlwq_kernels.codes import ceil_div, plane_widths


@dataclass(frozen=True)
class Columns:
    """A range of columns.

    Attributes:
        start: first column.
        stop: column after the last.
        block_size: n.
    """

    start: int
    stop: int
    block_size: int

    @property
    def first_block(self) -> int:
        """First block held."""
        return self.start // self.block_size

    @property
    def blocks(self) -> int:
        """Number of blocks held."""
        return ceil_div(self.stop, self.block_size) - self.first_block

    @property
    def lead(self) -> int:
        """Columns of the first block that belong to the rank before."""
        return self.start - self.first_block * self.block_size

    @property
    def held(self) -> int:
        """Columns held, from the start of the first block to `stop`."""
        return self.stop - self.first_block * self.block_size

    def row_bytes(self, bits: int) -> int:
        """Return the bytes of a row of codes."""
        return self.blocks * self.block_size * bits // 8

    def codes(self, codes: torch.Tensor, bits: int) -> torch.Tensor:
        """Return the codes of the held blocks: uint8 (..., row bytes of the whole) to (..., row_bytes)."""
        padded = codes.shape[-1] * 8 // bits
        if self.blocks * self.block_size == padded:
            return codes
        parts, at = [], 0
        for width in plane_widths(bits):
            first, size = (n * self.block_size * width // 8 for n in (self.first_block, self.blocks))
            parts.append(codes[..., at + first : at + first + size])
            at += padded * width // 8
        return torch.cat(parts, dim=-1)

    def scales(self, scales: torch.Tensor) -> torch.Tensor:
        """Return the scales of the held blocks: (..., all blocks) to (..., blocks)."""
        return scales[..., self.first_block : self.first_block + self.blocks]

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """Return activations of the rank's own columns, (..., stop - start), with zeros before them: (..., held)."""
        return pad(x, (self.lead, 0)) if self.lead else x
