"""Signals that end a process: handling, deferring, and the exit status of the command line.

A handler raises an exception, so that every ``finally`` runs: children are stopped, temporary
directories removed, half-written outputs deleted. Python ignores an exception that is raised where
it cannot be caught, such as in a finalizer; then the signal is sent again.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Ctrl-C, kill, a closed terminal, Ctrl-\, the warnings of batch systems, timers and a CPU limit:
# every signal that ends a process and that the process can handle, except those of crashes.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM",
         "SIGPROF", "SIGXCPU")  # fmt: skip
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
RESEND_SECONDS = 0.02
QUIET_SECONDS = 5.0  # further signals within this time do not interrupt the clean-up


class Interrupted(KeyboardInterrupt):
    """Raised by Ctrl-C."""


class Ended(SystemExit):
    """Raised by the signals in `SIGNALS` other than Ctrl-C; ``code`` is 128 + the signal number."""


class Endings:
    """The signal handler that raises `Interrupted` or `Ended`, and the received signals.

    Attributes:
        received: the numbers of the signals, in the order of arrival.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._quiet_until = 0.0
        self._dropped = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise `Interrupted` or `Ended`, unless one was raised within the last `QUIET_SECONDS`.

        Raises:
            Interrupted: the first received signal is Ctrl-C.
            Ended: the first received signal is another signal.
        """
        self.received.append(number)
        if _is_inside(frame, Endings.note_dropped):
            return  # Python would ignore an exception here too; the signal is sent again later
        now = time.monotonic()
        if now < self._quiet_until and not self._dropped:
            return  # a clean-up that has begun is not interrupted again
        self._quiet_until, self._dropped = now + QUIET_SECONDS, False
        first = self.received[0]
        raise Interrupted if first == signal.SIGINT else Ended(128 + first)

    def note_dropped(self, unraisable: Any) -> None:
        """Send a signal again if Python ignored the exception that the handler raised for it.

        The method is used as ``sys.unraisablehook``.
        """
        if not isinstance(unraisable.exc_value, Interrupted | Ended):
            sys.__unraisablehook__(unraisable)
            return
        self._dropped = True
        threading.Thread(target=self._send_again, daemon=True).start()

    def _send_again(self) -> None:
        while self._dropped:
            time.sleep(RESEND_SECONDS)  # wait for the end of the finalizer
            if self._dropped:
                os.kill(os.getpid(), self.received[0])


def _is_inside(frame: FrameType | None, function: Callable[..., Any]) -> bool:
    """Return whether a frame belongs to a function, or to code that the function has called."""
    while frame is not None:
        if frame.f_code is function.__code__:
            return True
        frame = frame.f_back
    return False


def raise_signals() -> list[int]:
    """Let signals that would end the process raise `Interrupted` or `Ended` instead.

    Call this only in the main thread of a process of mae-convert itself. Ignored signals stay
    ignored (as with ``nohup``), and handlers that other code has set are kept, except for Ctrl-C.

    Returns:
        A list to which each received signal is appended.
    """
    endings = Endings()
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if handler == signal.SIG_DFL or (number == signal.SIGINT and handler != signal.SIG_IGN):
            signal.signal(number, endings.handle)
    sys.unraisablehook = endings.note_dropped
    return endings.received


def ignore_signals() -> None:
    """Ignore further signals, because the process is already ending."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def ended_by(number: int) -> tuple[int, str]:
    """Return the exit status and the error message of a process that was ended by a signal."""
    name = signal.Signals(number).name
    return 128 + number, "interrupted" if number == signal.SIGINT else f"ended by {name}"


class Signals:
    """The signals that were caught while they were deferred."""

    def __init__(self) -> None:
        self._caught: list[tuple[int, FrameType | None]] = []

    def __bool__(self) -> bool:
        return bool(self._caught)

    def catch(self, number: int, frame: FrameType | None) -> None:
        """Record a signal for later."""
        self._caught.append((number, frame))

    def forget(self) -> None:
        """Discard the signals that were caught."""
        self._caught.clear()

    def deliver(self, handlers: Mapping[int, Any]) -> None:
        """Call the handler in `handlers` for the first signal that was caught."""
        for number, frame in self._caught[:1]:
            handler = handlers[number]
            if callable(handler):
                handler(number, frame)
            elif handler == signal.SIG_DFL:
                signal.raise_signal(number)


@contextmanager
def undisturbed() -> Iterator[Signals]:
    """Defer signals: a signal that would end the process does so only after the ``with`` block."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals  # only the main thread receives signals
        return
    before: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not None:  # the handler was set by Python
                before[number] = signal.getsignal(number)
                signal.signal(number, signals.catch)
        yield signals
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == signals.catch:  # not if the block changed it
                signal.signal(number, handler)
        signals.deliver(before)
