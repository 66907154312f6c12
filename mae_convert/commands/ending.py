"""How a command ends when Ctrl-C is pressed."""

import os
import signal
import sys
import threading
from typing import Any

A_MOMENT = 0.02


def raise_interrupts() -> list[int]:
    """Let Ctrl-C raise KeyboardInterrupt; return a list of those that have come, which grows."""
    came: list[int] = []

    def interrupt(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def come_again(ignored: Any) -> None:
        if ignored.exc_type is KeyboardInterrupt:
            threading.Timer(A_MOMENT, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            sys.__unraisablehook__(ignored)

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = come_again  # Python forgets what is raised where nothing may be
    return came


def ignore_interrupts() -> None:
    """Let the command end as it did: there is nothing left to interrupt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
