"""Key/value caches: static, in codes, and the attention that reads them."""
