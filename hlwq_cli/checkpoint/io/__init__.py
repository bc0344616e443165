"""Bytes of checkpoints: safetensors files, folders and Hub repositories, read by range."""
