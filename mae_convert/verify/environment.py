"""The versions that a verification ran with."""

import platform
from importlib import metadata

from mae_convert import __version__

PACKAGES = (
    "numpy",
    "torch",
    "tensorflow",
    "keras",
    "jax",
    "transformers",
    "timm",
    "terratorch",
    "safetensors",
)


def environment() -> dict[str, str]:
    """Return the versions that a reader of the verdict may need."""
    found = {"mae-convert": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "platform": platform.platform()}
