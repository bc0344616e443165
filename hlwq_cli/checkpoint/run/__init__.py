"""A run of `quantize`: slices through workers into shards, resumable."""
