"""Files as bytes, independent of their format: ranged reads, atomic writes, hashes."""
