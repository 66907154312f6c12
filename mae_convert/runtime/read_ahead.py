"""Read arrays into aligned memory in threads, for example while a framework is being imported."""

import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np

from mae_convert.formats.tensor import LazyTensor
from mae_convert.runtime.job import Job
from mae_convert.runtime.loaders import Stored, numpy_arrays

READERS = 2
"""The number of threads that read."""

ALIGNMENT = 64
"""The alignment of TensorFlow's memory in bytes."""

MAPPED_BYTES = 1 << 20
"""Arrays of at least this size in bytes get their own memory mapping."""


@contextmanager
def reading_threads() -> Iterator[Executor]:
    """Yield threads for reading; at the end, calls that have not begun are cancelled."""
    threads = ThreadPoolExecutor(READERS, thread_name_prefix="mae-convert")
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


@contextmanager
def stored_arrays(job: Job) -> Iterator[dict[str, Stored]]:
    """Yield the arrays of a job's files by name, while threads read them.

    A job runs the model once in each of its dtypes. If the first run is in float64, each array that
    float64 represents exactly is converted to float64. The dictionary is empty if Keras itself
    reads the file.

    Raises:
        LoadError: a file cannot be read, or two tensors have the same name.
    """
    if job.loader == "keras":
        yield {}
        return
    dtype = np.dtype(np.float64) if job.dtypes[0] == "float64" else None
    with reading_threads() as threads:
        stored = numpy_arrays(job.weights)
        yield {name: _begun(array, dtype, threads) for name, array in stored.items()}


def _begun(stored: Stored, dtype: np.dtype | None, threads: Executor) -> Stored:
    """Start to read an array in a thread; return the array, whose `load` waits for the thread.

    If `load` is called a second time, it reads the array again. The array is converted to `dtype`,
    unless `dtype` is None or cannot represent all of the array's values exactly.
    """
    read = partial(_aligned_copy, stored.load, dtype)
    running = [threads.submit(read)]
    return Stored(stored.shape, lambda: running.pop().result() if running else read())


def _aligned_copy(load: Callable[[], np.ndarray], dtype: np.dtype | None) -> np.ndarray:
    array = load()
    if dtype is None or not np.can_cast(array.dtype, dtype, "safe"):
        dtype = array.dtype
    copied = aligned_array(array.shape, dtype)
    copied[...] = array
    return copied


def read_aligned(tensor: LazyTensor) -> np.ndarray:
    """Return a tensor in new memory that TensorFlow can use without a copy."""
    array = aligned_array(tensor.shape, tensor.dtype)
    tensor.read_into(array.reshape(-1))
    return array


def aligned_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return a new array with arbitrary values, whose memory TensorFlow can use without a copy.

    A large array has its own memory mapping, so that its memory is returned to the system as soon
    as the array is freed. The allocator would keep the memory for other arrays of this thread.
    """
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if count < MAPPED_BYTES:
        memory = np.empty(count + ALIGNMENT, np.uint8)
        begin = -memory.ctypes.data % ALIGNMENT
    else:
        memory = np.frombuffer(mmap.mmap(-1, count, access=mmap.ACCESS_COPY), np.uint8)
        begin = 0  # mappings begin with a page
    return memory[begin : begin + count].view(dtype).reshape(shape)
