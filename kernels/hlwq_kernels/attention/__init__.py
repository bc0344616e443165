"""Attention over a key/value cache in codes."""
