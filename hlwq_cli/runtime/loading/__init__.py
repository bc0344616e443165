"""Checkpoints as transformers models: the quantizer plugin, strict loading, processors."""
