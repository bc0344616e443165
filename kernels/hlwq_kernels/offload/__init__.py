"""Experts outside the GPU: their records, the slots on the device, and the layer that runs from slots."""
