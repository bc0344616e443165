"""Speed and memory of calibrated quantization."""
