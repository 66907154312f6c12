"""Mapping tables between layouts: rows, transforms, `Layout`; without the tables themselves."""
