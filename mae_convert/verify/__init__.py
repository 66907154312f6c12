"""Run two checkpoints on the same inputs and decide whether they are the same function."""
