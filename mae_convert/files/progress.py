"""The interface through which a long operation reports its progress."""

from collections.abc import Callable

Advance = Callable[[int], None]


class Progress:
    """Receives the progress of a long operation; this base class ignores it."""

    def begin(self, total: int) -> None:
        """Report the end of the previous operation, and the start of one on `total` bytes."""

    def advance(self, count: int) -> None:
        """Report that `count` more bytes were processed; may be called from any thread."""
