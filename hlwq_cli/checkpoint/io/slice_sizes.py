"""The number of weights read at a time: to encode, to export or to compare them."""

SLICE_WEIGHTS = 1_048_576
"""Weights that a CPU thread reads, encodes and writes at a time: 4 MiB in float32."""

MAX_ROW_WEIGHTS = 16_777_216
"""Weights of the longest row that is coded: a row is read, coded and decoded as a whole. Others stay as they are."""

GPU_SLICE_WEIGHTS = 33_554_432
"""The same for a GPU: 64 MiB in bfloat16, so that the fixed cost of a slice is small."""
