"""Import paths of classes, so that a framework is imported only when a model is created."""

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
    """Return the import path of a class for `class_named`."""
    return f"{kind.__module__}:{kind.__qualname__}"
