"""Visualise what a model computes: masks, reconstructions, sheets of images, features."""
