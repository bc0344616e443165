"""What every kernel builds on: compiled CUDA C++, custom ops, devices, and the shared CUDA headers."""
