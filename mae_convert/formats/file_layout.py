"""The layout of a file: the offset of everything in it, known before any tensor is read.

Tensors can therefore be written in any order, by several threads at once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

BytesAt = tuple[int, bytes]
"""An offset in a file, and the bytes there."""


@dataclass(frozen=True)
class FileLayout:
    """The layout of a file."""

    size: int
    """The size of the file in bytes."""

    places: Sequence[int]
    """The offset of each tensor's first byte, in the order of the tensors."""

    finalize: Callable[[Sequence[int]], Iterable[BytesAt]]
    """Returns everything else in the file, given the CRC-32 of each tensor's bytes."""

    checksums: Sequence[int] | None = None
    """If `finalize` needs them: the CRC-32 of the bytes before each tensor, to be continued with
    the bytes of the tensor; otherwise None."""
