"""Read and write file formats of weights, independently of layouts.

A file is opened as a :class:`Container` of lazy tensors, and tensors are written to a file or a
model directory. No deep learning framework is imported, and no pickle is executed. The functions
that write are imported on first use, so that commands that only read start quickly.
"""

from typing import TYPE_CHECKING

from mae_convert.formats.container import Container, open_container
from mae_convert.formats.tensor import LazyTensor

if TYPE_CHECKING:
    from mae_convert.formats.write import write_directory, write_file

__all__ = ["Container", "LazyTensor", "open_container", "write_directory", "write_file"]


def __getattr__(name: str) -> object:
    if name in ("write_directory", "write_file"):
        from mae_convert.formats import write

        return getattr(write, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
