"""The classes for mapping tables: rows, transforms and `Layout`; families define the tables."""
