"""Read and write file formats of weights, independently of layouts.

A file is opened as a :class:`Container` of lazy tensors, and tensors are written to a file or a
model directory. No deep learning framework is imported, and no pickle is executed.
"""

from mae_convert.formats.container import Container, open_container
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.write import write_directory, write_file

__all__ = ["Container", "LazyTensor", "open_container", "write_directory", "write_file"]
