"""Products of activations with coded weights."""
