"""Run two checkpoints on the same inputs and decide whether they compute the same function."""
