"""Modules that hold codes: linear layers, embeddings, experts."""
