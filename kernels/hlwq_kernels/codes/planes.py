"""Bit planes: how b-bit codes are stored in bytes.

A code is split into planes of 4, 2 and 1 bits, low bits first. A row is its planes one after the other. A plane is a
little-endian string of 32-bit words. Within a word, codes whose index has bit 2 clear fill the low half, the others
the high half. So codes i and i + 4 are 16 bits apart in every plane, and a kernel gets both into the halves of one
register with one shift and one mask, whatever planes the width has. In a 4-bit plane this is the natural order.
"""

from __future__ import annotations

import torch

_WIDTHS = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (4, 4)}


def plane_widths(bits: int) -> tuple[int, ...]:
    """Return the widths of the planes of a `bits`-bit code, low bits first."""
    return _WIDTHS[bits]


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes into planes.

    Args:
        codes: uint8 (..., n), each below 2^bits; n a multiple of 32.
        bits: 2 to 8.

    Returns:
        uint8 (..., n * bits / 8).
    """
    planes, shift = [], 0
    for width in plane_widths(bits):
        fields = _to_word_order((codes >> shift) & (2**width - 1), width)
        planes.append(_join_fields(fields, width))
        shift += width
    return torch.cat(planes, dim=-1)


def unpack_codes(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Undo `pack_codes`: uint8 (..., n * bits / 8) to uint8 (..., n)."""
    n = packed.shape[-1] * 8 // bits
    codes = torch.zeros(*packed.shape[:-1], n, dtype=torch.uint8, device=packed.device)
    start, shift = 0, 0
    for width in plane_widths(bits):
        size = n * width // 8
        fields = _split_bytes(packed[..., start : start + size], width)
        codes |= _from_word_order(fields, width) << shift
        start, shift = start + size, shift + width
    return codes


def _to_word_order(fields: torch.Tensor, width: int) -> torch.Tensor:
    ordered: torch.Tensor = fields.unflatten(-1, (-1, 4 // width, 2, 4)).transpose(-3, -2).flatten(-4)
    return ordered


def _from_word_order(fields: torch.Tensor, width: int) -> torch.Tensor:
    ordered: torch.Tensor = fields.unflatten(-1, (-1, 2, 4 // width, 4)).transpose(-3, -2).flatten(-4)
    return ordered


def _join_fields(fields: torch.Tensor, width: int) -> torch.Tensor:
    """Join fields of `width` bits to bytes, the first in the lowest bits."""
    groups: torch.Tensor = fields.unflatten(-1, (-1, 8 // width))
    joined = groups[..., 0].clone()
    for i in range(1, 8 // width):
        joined |= groups[..., i] << (i * width)
    return joined


def _split_bytes(packed: torch.Tensor, width: int) -> torch.Tensor:
    parts = [(packed >> (i * width)) & (2**width - 1) for i in range(8 // width)]
    fields: torch.Tensor = torch.stack(parts, dim=-1).flatten(-2)
    return fields
