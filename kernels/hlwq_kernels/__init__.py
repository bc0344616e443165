"""Kernels of HLWQ: they know tensors, nothing of files or models.

Every operation exists as a plain torch function, the reference: it is the definition, and runs where nothing faster
does. It also exists as compiled code with the same bytes as its result. `encode_rows` and `decode_rows` pick one by
device.
"""

from .codes.hadamard import hadamard
from .codes.planes import pack_codes, plane_widths, unpack_codes
from .codes.tables import SCALE_STEPS, CodeTables
from .decode.dispatch import decode_rows
from .encode.dispatch import EncodedRows, encode_rows, prepare_encode

__all__ = [
    "SCALE_STEPS",
    "CodeTables",
    "EncodedRows",
    "decode_rows",
    "encode_rows",
    "hadamard",
    "pack_codes",
    "plane_widths",
    "prepare_encode",
    "unpack_codes",
]
