"""The classes of mapping tables: rows, transforms and `Layout`; families have the tables."""
