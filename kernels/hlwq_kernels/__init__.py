"""Kernels of HLWQ: they know tensors, and nothing of files or models.

Every operation exists as a plain torch function, the reference: it is the definition, and runs where nothing faster
does. It also exists as compiled code with the same bytes or values as its result; the operation picks one by device.
A folder holds one operation or what several share; its `__init__` lists what other folders and packages may use.
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
