"""Classes that are named by text, so that a framework is imported only where a model is made."""

import importlib
from typing import Any


def class_named(place: str) -> Any:
    """Return a class.

    Args:
        place: "module:Class", from the description of a family of models and never from a file.
    """
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def place_of(kind: type) -> str:
    """Return the text by which `class_named` finds a class."""
    return f"{kind.__module__}:{kind.__qualname__}"
