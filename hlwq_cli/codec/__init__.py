"""The mathematics of HLWQ: encode weights and decode them. It knows tensors, but neither files nor models.

It is the scalar case of HIGGS (arXiv 2411.17525), published for weights as PolarQuant/HLWQ (arXiv 2603.29078).
"""

from hlwq_kernels import EncodedRows
from hlwq_kernels.codes import ceil_div, part_name, unpack_codes
from hlwq_kernels.encode import FeedbackFactor, FeedbackRows

from .codebook import MAX_BITS, MIN_BITS, lloyd_max
from .encode import SquaredError, coding_cost, decode, encode
from .feedback import encode_feedback, feedback_factor
from .moments import Moments, Prior, blend_experts, shrink
from .rows import encode_rows, encoded_layout, has_encode_kernel, prepare_encode
from .scheme import BLOCK_SIZES, Coded, Scheme

__all__ = [
    "BLOCK_SIZES",
    "MAX_BITS",
    "MIN_BITS",
    "Coded",
    "EncodedRows",
    "FeedbackFactor",
    "FeedbackRows",
    "Moments",
    "Prior",
    "Scheme",
    "SquaredError",
    "blend_experts",
    "ceil_div",
    "coding_cost",
    "decode",
    "encode",
    "encode_feedback",
    "encode_rows",
    "encoded_layout",
    "feedback_factor",
    "has_encode_kernel",
    "lloyd_max",
    "part_name",
    "prepare_encode",
    "shrink",
    "unpack_codes",
]
