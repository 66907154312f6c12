"""Digests of a conversion's canonical tensors, computed without reading them again.

For a tensor that is written in canonical form, the comparison of the output computes the digest.
Others are hashed while they are read for writing.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mae_convert.files.sequential import SequentialArray
from mae_convert.formats.tensor import LazyTensor, as_bytes, blocks, sha256


class PassingDigest:
    """The SHA-256 of a tensor's bytes, computed while the tensor is read for writing.

    Args:
        tensor: the tensor; `watched` must be read in its place.
    """

    def __init__(self, tensor: LazyTensor) -> None:
        self.tensor = tensor
        self._digest, self._next = hashlib.sha256(), 0
        self._result: str | None = None
        self._lock = threading.Lock()

    @property
    def watched(self) -> LazyTensor:
        """The tensor; its elements are hashed when they are read in order."""
        load = self.tensor.load
        if isinstance(load, SequentialArray):
            return replace(
                self.tensor, load=_Watched(self.tensor.shape, self.tensor.dtype, load, self.take)
            )
        return replace(self.tensor, load=lambda: self.take(load(), 0))

    def take(self, array: np.ndarray, start: int) -> np.ndarray:
        """Hash some elements if they are the next ones, and return them.

        Args:
            array: consecutive elements in C order.
            start: the number of elements before them.
        """
        with self._lock:
            if self._result is None and start in (0, self._next):
                if start == 0:  # start, or start again, from the beginning
                    self._digest, self._next = hashlib.sha256(), 0
                for piece in blocks(array):
                    self._digest.update(as_bytes(piece))
                self._next += array.size
                if self._next * self.tensor.dtype.itemsize == self.tensor.nbytes:
                    self._result = self._digest.hexdigest()
        return array

    def hexdigest(self) -> str:
        """Return the digest; a tensor that was not read in order is read now."""
        if self._result is None:
            self._result = sha256(self.tensor)
        return self._result


@dataclass(frozen=True, eq=False)
class _Watched(SequentialArray):
    """An array that passes its elements to a function when they are read."""

    of: SequentialArray
    take: Callable[[np.ndarray, int], np.ndarray]

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Return elements of the other array."""
        return self.take(self.of.elements(start, stop), start)


def watched(
    tensors: Mapping[str, LazyTensor], digests: Mapping[str, PassingDigest]
) -> dict[str, LazyTensor]:
    """Return the tensors; those with a digest are hashed when they are read."""
    return {n: digests[n].watched if n in digests else tensor for n, tensor in tensors.items()}
