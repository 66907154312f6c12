"""Values as plain data that JSON can hold, and numbers as a person reads them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Return a value as plain data that JSON can hold."""
    if isinstance(value, str):
        return in_unicode(value)
    if isinstance(value, Mapping):
        return {in_unicode(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def in_unicode(value: Any) -> Any:
    r"""Return a value with every lone surrogate in its text as an escape sequence, as ``\udcff``.

    Python reads a file name that is not UTF-8, and some pickles hold text, with such halves of a
    character. Neither JSON that is read strictly nor SQLite can hold them.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {in_unicode(key): in_unicode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_unicode(item) for item in value]
    return value


def number(value: Any) -> str:
    """Return a number as a person reads it."""
    return f"{value:.1e}" if isinstance(value, float) and value != 0 else str(value)


def size_of(size: Any) -> str:
    """Return a size, one number or two, as height and width."""
    if size is None:
        return "size not specified"
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} x {width}"
