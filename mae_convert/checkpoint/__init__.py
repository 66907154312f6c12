"""Checkpoints: opened, recognised, with a configuration; inspected and compared."""
