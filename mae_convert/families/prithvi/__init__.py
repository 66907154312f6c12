"""Prithvi-EO: its configuration, canonical schema and layouts."""
