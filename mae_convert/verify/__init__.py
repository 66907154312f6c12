"""Run two checkpoints on the same inputs and judge whether they are the same function.

The modules ``worker``, ``job``, ``loaders`` and ``run_*`` are executed in child processes, one
framework each, and import nothing but NumPy, safetensors and that framework.
"""
