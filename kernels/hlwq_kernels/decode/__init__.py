"""Decode weights: the reference, and the backends that produce the same values."""

from .dispatch import decode_rows, decode_used_parts
from .reference import decode_rows_reference

__all__ = ["decode_rows", "decode_rows_reference", "decode_used_parts"]
