"""Faults that the verification has to detect: in weights, mapping tables, configurations and code.

The population is generated here and scored by ``scripts/mutation_score.py``; the tests run a sample
of it. What makes a fault here shares no code with what explains one in ``mae_convert.verify``.
"""
