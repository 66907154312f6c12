"""How mapping tables between layouts work: rows, transforms, `Layout`; no library's table."""
