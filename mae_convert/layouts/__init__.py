"""The algebra of mapping tables between layouts: rows, transforms, `Layout`; no library's table."""
