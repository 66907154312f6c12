"""Standard output, standard error and logging of a command: closed streams, missing characters.

Only the command line calls these functions; a program that imports the package keeps its own
streams and logging configuration.
"""

import os
import sys
import traceback
import warnings
from typing import Any

from mae_convert.text import for_terminal
from mae_convert.text.redaction import redact_logs, without_secrets


def prepare_streams() -> bool:
    """Make closed streams and missing characters harmless; return whether there is an output.

    A closed descriptor would be assigned to the next file that is opened, for example a checkpoint
    that is being written, and messages would be written into that file.
    """
    has_output = sys.stdout is not None and _is_open(1)
    for number in (0, 1, 2):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # streams of tests have no descriptor
            reconfigure(errors="backslashreplace")
    redact_logs()
    warnings.showwarning = _say_warning
    return has_output


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning on one line, without its source location.

    This replaces `warnings.showwarning`; `warnings.filters` still decides which warnings are shown.
    """
    say(f"note: {' '.join(str(message).split())}")


def say(sentence: str) -> None:
    """Print a sentence on standard error; failure to print is ignored."""
    try:
        print(for_terminal(without_secrets(sentence)), file=sys.stderr, flush=True)
    except OSError:
        return


def print_unexpected(error: BaseException) -> None:
    """Print the traceback of an unexpected error, without credentials."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        say(line)
