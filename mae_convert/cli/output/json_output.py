"""Print JSON, without importing what prints tables."""

import json
import os
import sys
from typing import Any

from mae_convert.files.strict_json import plain


def discard_output() -> None:
    """Discard all further output to standard output."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return plain data as JSON in printable ASCII; non-finite numbers become strings."""
    return json.dumps(plain(value), indent=indent).replace("\x7f", "\\u007f")


def print_json(value: Any) -> None:
    """Print one JSON object; non-finite numbers become strings."""
    try:
        print(json_text(value, indent=2), flush=True)
    except BrokenPipeError:
        discard_output()
