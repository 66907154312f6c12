"""Visualise a model: masks, reconstructions, contact sheets, features, training curves."""
