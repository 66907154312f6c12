"""What Keras users do with a model; the checks run in the process of ``models_worker.py``."""

CHECKS = {name: check for name, check in globals().items() if name.startswith("check_")}
