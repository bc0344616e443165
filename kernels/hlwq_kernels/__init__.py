"""Kernels of HLWQ: they work on tensors, and know nothing of files or models.

Every operation has a reference, a plain torch function that defines the result and runs on any device. It also has
compiled code with the same bytes or values as its result. The operation chooses by device. A folder holds one
operation, or what several share. Its `__init__` lists what other folders and packages may use.
"""

from .attention import attend
from .codes import SCALE_STEPS, CodeTables, QuantizedWeight, hadamard, pack_codes, plane_widths, unpack_codes
from .decode import decode_rows
from .encode import EncodedRows, ScaleKind, encode_rows, prepare_encode
from .linear import coded_linear
from .moe import coded_experts

__all__ = [
    "SCALE_STEPS",
    "CodeTables",
    "EncodedRows",
    "QuantizedWeight",
    "ScaleKind",
    "attend",
    "coded_experts",
    "coded_linear",
    "decode_rows",
    "encode_rows",
    "hadamard",
    "pack_codes",
    "plane_widths",
    "prepare_encode",
    "unpack_codes",
]
