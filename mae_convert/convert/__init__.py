"""Conversions: plan, execution, record."""
