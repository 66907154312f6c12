"""Faults that the verification has to detect: in weights, mapping tables, configurations and code.

The population is generated here and scored by ``scripts/mutation_score.py``; the tests run a sample
of it. The code that creates faults shares nothing with the code that explains them in
``mae_convert.diagnose``.
"""
