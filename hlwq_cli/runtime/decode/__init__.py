"""Generation: one-token steps on static buffers, captured into CUDA graphs where there is CUDA."""
