"""The possible values of the options of a run.

This module imports nothing, so that the command line can use the values without importing the
modules that run models.
"""

# The reference models on three backends, and three libraries with their own classes.
FRAMEWORKS = ("torch", "tensorflow", "jax", "transformers", "timm", "terratorch")
FRAMEWORK_SYNONYMS = {"pytorch": "torch", "tf": "tensorflow"}
# "tf32" is float32 with factors of matrix products rounded to 10 bits, which CUDA devices support.
RUN_DTYPES = ("float64", "float32", "tf32", "float16", "bfloat16")
DEVICES = ("cpu", "cuda")
MODES = ("eager", "compiled", "xla", "train")
