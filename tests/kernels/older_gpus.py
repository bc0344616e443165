"""Older generations of GPUs for the tests that compile CUDA sources."""

OLDER = [("sm_75", 1), ("sm_75", 2), ("sm_80", 2)]
"""A generation and a dtype id. Generations differ in ptx.cuh alone, by the same lines for every width and dtype."""
