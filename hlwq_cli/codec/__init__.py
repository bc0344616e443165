"""The mathematics of HLWQ: weights to codes and back. Knows tensors; nothing of files or models.

It is the scalar case of HIGGS (arXiv 2411.17525), published for weights as PolarQuant/HLWQ (arXiv 2603.29078).
"""

from .codebook import MAX_BITS, MIN_BITS, lloyd_max
from .encode import SquaredError, coding_cost, decode, encode
from .scheme import BLOCK_SIZES, Coded, Scheme

__all__ = [
    "BLOCK_SIZES",
    "MAX_BITS",
    "MIN_BITS",
    "Coded",
    "Scheme",
    "SquaredError",
    "coding_cost",
    "decode",
    "encode",
    "lloyd_max",
]
