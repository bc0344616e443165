"""Weights to codes: the reference and the backends that give its bytes."""
