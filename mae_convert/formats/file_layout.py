"""Where everything of a file will stand, known before any tensor is read.

So the tensors can be written in any order, by several threads at once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Stretch = tuple[int, bytes]
"""Bytes of a file and their offset."""


@dataclass(frozen=True)
class Blueprint:
    """The layout of a file.

    Attributes:
        size: its bytes.
        places: where the bytes of each tensor begin, in the order of the tensors.
        seal: returns everything else that is in the file, given the CRC-32 of each tensor's bytes.
        checksums: where `seal` needs these: what each CRC-32 goes on from, because other bytes
            stand before the tensor's in what is summed; else None.
    """

    size: int
    places: Sequence[int]
    seal: Callable[[Sequence[int]], Iterable[Stretch]]
    checksums: Sequence[int] | None = None
