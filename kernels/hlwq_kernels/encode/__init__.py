"""Encode weights: the reference, and the backends that produce the same bytes; and encoding with error feedback."""

from .dispatch import encode_rows, prepare_encode
from .feedback import encode_feedback
from .feedback_reference import encode_feedback_reference
from .feedback_types import FeedbackFactor, FeedbackRows
from .reference import encode_rows_reference
from .types import EncodedRows, ScaleKind, encoded_layout

__all__ = [
    "EncodedRows",
    "FeedbackFactor",
    "FeedbackRows",
    "ScaleKind",
    "encode_feedback",
    "encode_feedback_reference",
    "encode_rows",
    "encode_rows_reference",
    "encoded_layout",
    "prepare_encode",
]
