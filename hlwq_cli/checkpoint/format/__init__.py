"""Coded checkpoints on disk: shards and manifest, read, verified, inspected and exported."""
