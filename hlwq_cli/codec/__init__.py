"""The mathematics of HLWQ: encode weights and decode them. It knows tensors, but neither files nor models.

It is the scalar case of HIGGS (arXiv 2411.17525), published for weights as PolarQuant/HLWQ (arXiv 2603.29078).
"""

from hlwq_kernels import EncodedRows
from hlwq_kernels.codes import ceil_div, part_name, unpack_codes

from .codebook import MAX_BITS, MIN_BITS, lloyd_max
from .encode import SquaredError, coding_cost, decode, encode
from .rows import encode_rows, encoded_layout, has_encode_kernel, prepare_encode
from .scheme import BLOCK_SIZES, Coded, Scheme

__all__ = [
    "BLOCK_SIZES",
    "MAX_BITS",
    "MIN_BITS",
    "Coded",
    "EncodedRows",
    "Scheme",
    "SquaredError",
    "ceil_div",
    "coding_cost",
    "decode",
    "encode",
    "encode_rows",
    "encoded_layout",
    "has_encode_kernel",
    "lloyd_max",
    "part_name",
    "prepare_encode",
    "unpack_codes",
]
