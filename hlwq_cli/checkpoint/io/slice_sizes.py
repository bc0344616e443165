"""The number of weights read at a time: to encode, to export or to compare them."""

SLICE_WEIGHTS = 1_048_576
"""Weights that a CPU thread reads, encodes and writes at a time: 4 MiB in float32."""

GPU_SLICE_WEIGHTS = 33_554_432
"""The same for a GPU: 64 MiB in bfloat16, so that the fixed cost of a slice is small."""
