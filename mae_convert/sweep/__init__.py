"""Convert and verify many checkpoints with one command, on one machine or a cluster."""
