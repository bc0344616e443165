"""How quantized weights are stored: bit planes, code tables, block scales and the rotation.

`blocks_numba` is not part of this face: it imports numba, and only the numba backends of encode and decode need it.
"""

from .hadamard import hadamard, tree_sum
from .integers import ceil_div
from .layout import (
    PARTS,
    SCALE_FORMATS,
    PartLayout,
    ScaleFormat,
    ScaleKind,
    layout,
    padded_columns,
    part_name,
)
from .planes import pack_codes, plane_widths, unpack_codes
from .quantized_weight import (
    SHARED_BYTES,
    QuantizedWeight,
    kernel_macros,
    table_bytes,
    table_copies,
    to_kernel_layout,
    weight_arguments,
)
from .scales import block_scales
from .tables import (
    ERROR_UNIT,
    HALF_STEP,
    LARGEST,
    OCTAVE,
    SCALE_STEPS,
    SEARCH_FACTORS,
    SEARCH_HIGH,
    SEARCH_LOW,
    SMALLEST,
    CodeTables,
    Float32Array,
    bits_of,
    scale_steps_on,
)

__all__ = [
    "ERROR_UNIT",
    "HALF_STEP",
    "LARGEST",
    "OCTAVE",
    "PARTS",
    "SCALE_FORMATS",
    "SCALE_STEPS",
    "SEARCH_FACTORS",
    "SEARCH_HIGH",
    "SEARCH_LOW",
    "SHARED_BYTES",
    "SMALLEST",
    "CodeTables",
    "Float32Array",
    "PartLayout",
    "QuantizedWeight",
    "ScaleFormat",
    "ScaleKind",
    "bits_of",
    "block_scales",
    "ceil_div",
    "hadamard",
    "kernel_macros",
    "layout",
    "pack_codes",
    "padded_columns",
    "part_name",
    "plane_widths",
    "scale_steps_on",
    "table_bytes",
    "table_copies",
    "to_kernel_layout",
    "tree_sum",
    "unpack_codes",
    "weight_arguments",
]
