"""Codes to weights: the reference and the backends that give its values."""
