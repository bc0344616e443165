"""Encode weights: the reference, and the backends that produce the same bytes."""

from .dispatch import encode_rows, prepare_encode
from .reference import encode_rows_reference
from .types import EncodedRows, ScaleKind, encoded_layout

__all__ = ["EncodedRows", "ScaleKind", "encode_rows", "encode_rows_reference", "encoded_layout", "prepare_encode"]
