"""Standard output, standard error and the log of a command: what may be closed, or lack characters.

Only the command line calls this: the streams and the log of a program that imports the package are
its own.
"""

import logging
import os
import sys
import traceback
import warnings
from typing import Any

from mae_convert.redaction import without_secrets
from mae_convert.text import for_terminal


def prepare_streams() -> bool:
    """Have every character and every closed stream do no harm; return whether there is an output.

    A descriptor that is closed would be given to the next file that is opened, a checkpoint that
    is being written for instance, into which messages would go then.
    """
    has_output = sys.stdout is not None and _is_open(1)
    for number in (0, 1, 2):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a test's own stream has none
            reconfigure(errors="backslashreplace")
    _redact_logs()
    warnings.showwarning = _say_warning
    return has_output


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _redact_logs() -> None:
    """Have what this program and the libraries log hold no credentials, and no control characters.

    The Hub's client logs addresses, which may be signed, and what servers say.
    """
    before = logging.getLogRecordFactory()
    if getattr(before, "is_redacting", False):
        return

    def redacted(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = before(*arguments, **named)
        try:
            message = record.getMessage()
        except Exception:  # the logger tells of an error of its caller in its own way
            return record
        lines = without_secrets(message).splitlines()
        record.msg, record.args = "\n".join(map(for_terminal, lines)), ()
        if record.exc_info and record.exc_info[1] is not None:
            text = traceback.format_exception(record.exc_info[1])
            record.exc_text = without_secrets("".join(text)).rstrip()
        return record

    redacted.is_redacting = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(redacted)


def _say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning, of this program or of a library, on one line and without its place in code.

    This is what Python provides for it; `warnings.filters` still decides which are shown.
    """
    say(f"note: {' '.join(str(message).split())}")


def say(sentence: str) -> None:
    """Print a sentence on standard error; that it cannot be printed is not worth a failure."""
    try:
        print(for_terminal(without_secrets(sentence)), file=sys.stderr, flush=True)
    except OSError:
        return


def print_unexpected(error: BaseException) -> None:
    """Print the traceback of an error that nobody has foreseen, without credentials."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        say(line)
