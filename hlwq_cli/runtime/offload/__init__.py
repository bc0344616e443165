"""Experts outside the GPU, and the memory that a model takes there."""
