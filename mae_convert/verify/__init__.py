"""Run two checkpoints on the same inputs and decide whether they compute the same function.

A comparison has two sides: checkpoint A, the source, and checkpoint B, the target. The declared
steps of a checkpoint are the changes that its conversion record (``conversion.json``) lists, for
example, another dtype or image size.
"""
