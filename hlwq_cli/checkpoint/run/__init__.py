"""The run of `quantize`: workers read, encode and write slices of tensors into shards. A killed run can be resumed."""
