"""Decode steps of single model families in few launches."""
