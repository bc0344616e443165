"""How weights lie in codes: bit planes, tables, scales, and the rotation."""
