"""Conversions: planned, carried out, recorded."""
