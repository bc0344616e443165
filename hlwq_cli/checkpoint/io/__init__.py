"""Read the bytes of checkpoints by range, from safetensors files in folders and Hub repositories."""
