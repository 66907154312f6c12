"""Open, recognise, inspect and compare checkpoints."""
