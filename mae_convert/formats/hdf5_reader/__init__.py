"""A reader of HDF5 files, written for files from untrusted sources.

It exists because the HDF5 library, which h5py calls, is written in C and has a history of memory
errors: a malicious or corrupt file can crash the program that opens it, and links in a file can
make it open other files. No option of h5py prevents this. This reader parses the bytes in Python,
so that a malicious file can only cause an error. Several threads read the tensors, as byte ranges
of the same open file that was checked and hashed. No HDF5 library is loaded; h5py is used only for
writing.

The reader reads what Keras, h5py and TensorFlow write (groups in the older and the newer format,
attributes, contiguous, compact and chunked datasets, gzip) and reports unsupported features.
Section numbers in this package refer to the HDF5 File Format Specification, version 3.0.
"""

from mae_convert.formats.hdf5_reader.datasets import Dataset
from mae_convert.formats.hdf5_reader.tree import Tree, read_tree

__all__ = ["Dataset", "Tree", "read_tree"]
